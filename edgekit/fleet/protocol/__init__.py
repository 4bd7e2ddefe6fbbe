"""What travels between agents, people and the service: pydantic models, names and paths; nothing that acts.

Times are seconds since 1970 in UTC. Sizes are bytes, durations seconds where the name does not say otherwise.
"""

"""Which settings of a server carry the most requests within an objective, found on the real server.

settings   what can be chosen, and the TOML file that `edgekit serve --settings` reads
trial      the highest rate at which one node with these settings holds the objective
halving    many settings for a short time, the better half for longer (successive halving)
search     both together, resumable
"""

"""The service's API from Python: what the command line and the agent use, and scripts may.

connection   one address, asked over HTTP; every failure as an edgekit error
people       what people ask
agents       what an agent asks, as the device that it is
pushing      a bundle sent, of which only what the registry lacks travels
source       a bundle on disk as files, for it
"""

from edgekit.fleet.client.agents import AgentClient
from edgekit.fleet.client.connection import Connection, problem_of
from edgekit.fleet.client.people import FleetClient

__all__ = ["AgentClient", "Connection", "FleetClient", "problem_of"]

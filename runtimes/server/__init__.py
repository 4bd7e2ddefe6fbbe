"""Nodes: `edgekit serve`, stages and whole models over the Open Inference Protocol v2 (REST and gRPC)."""

from edgekit.runtimes.server.announce import Found, discover
from edgekit.runtimes.server.node import Node, NodeOptions
from edgekit.runtimes.server.schedule import BatchOptions
from edgekit.runtimes.server.security import Security
from edgekit.runtimes.server.tenants import read_tenants
from edgekit.runtimes.token_file import read_token

__all__ = ["BatchOptions", "Found", "Node", "NodeOptions", "Security", "discover", "read_tenants", "read_token"]

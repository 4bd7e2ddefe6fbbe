"""Nodes: `edgekit serve`, stages and whole models over the Open Inference Protocol v2 (REST and gRPC)."""

from edgekit.runtimes.server.announce import Found, discover
from edgekit.runtimes.server.batching import BatchOptions
from edgekit.runtimes.server.node import Node, NodeOptions
from edgekit.runtimes.server.security import Security, read_token

__all__ = ["BatchOptions", "Found", "Node", "NodeOptions", "Security", "discover", "read_token"]

"""Nodes: `edgekit serve`, stages and whole models over the Open Inference Protocol v2 (REST and gRPC)."""

from edgekit.runtimes.server.batching import BatchOptions
from edgekit.runtimes.server.node import Node, NodeOptions
from edgekit.runtimes.server.security import Security

__all__ = ["BatchOptions", "Node", "NodeOptions", "Security"]

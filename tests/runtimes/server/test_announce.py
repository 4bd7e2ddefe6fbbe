"""Nodes find each other by multicast on loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.errors import NodeError
from edgekit.runtimes.server import Node, NodeOptions, discover

LOOPBACK = ["127.0.0.1"]


@pytest.fixture(autouse=True)
def multicast() -> None:
    """Skips where this machine takes no multicast on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK[0]))
            probe.sendto(b"", ("224.0.0.251", 5353))
        except OSError as error:
            pytest.skip(f"no multicast on loopback: {error}")


def test_an_announced_node_is_found_and_taken_back(split_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(split_bundle, tier="edge", announce=True)
    with Bundle.open(split_bundle) as opened:
        digest = opened.digest
    found = {entry.grpc_url: entry for entry in discover(5.0, LOOPBACK, at_least=1)}
    assert found[node.grpc_url].tier == "edge"
    assert found[node.grpc_url].bundles == (digest,)
    node.stop()
    assert node.grpc_url not in {entry.grpc_url for entry in discover(0.3, LOOPBACK)}


def test_a_node_without_a_grpc_port_is_not_announced(split_bundle: Path) -> None:
    with pytest.raises(NodeError, match="cannot be announced"):
        Node([split_bundle], NodeOptions(grpc_port=None, announce=True))

"""A replica outside of Ray: what it opens, refuses, and says of its health."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import MismatchError, NodeError
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.ray_engine import RayOptions
from edgekit.runtimes.ray_engine.replica import Replica
from edgekit.runtimes.server import NodeOptions
from samples.benchmarks.rolling_scene import MODEL, WIDTH, expected

OPTIONS = RayOptions(NodeOptions(tier="device", port=8101, grpc_port=None), grace_s=1.0)


def digest(path: Path) -> str:
    with Bundle.open(path) as bundle:
        return bundle.digest


def test_it_holds_a_nodes_own_engine_without_ports(bundle: Path) -> None:
    replica = Replica([(str(bundle), digest(bundle))], OPTIONS)
    try:
        assert (replica.node.rest_url, replica.node.grpc_url) == ("", "")
        x = np.ones((2, WIDTH), np.float32)
        answer = replica.node.engine.infer(InferCall(MODEL, tensors={"x": x}))
        np.testing.assert_array_equal(answer.tensors["y"], expected(x, 1))
        replica.check_health()
    finally:
        replica.__del__()


def test_it_is_unhealthy_when_its_engine_takes_no_more_requests(bundle: Path) -> None:
    replica = Replica([(str(bundle), digest(bundle))], OPTIONS)
    try:
        assert replica.node.engine.drain(1.0)
        with pytest.raises(NodeError, match="takes no requests"):
            replica.check_health()
    finally:
        replica.__del__()


def test_another_bundle_than_was_deployed_is_refused(bundle: Path) -> None:
    with pytest.raises(MismatchError, match="deployed was 00000000"):
        Replica([(str(bundle), "0" * 64)], OPTIONS)

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import UsageError
from edgekit.runtimes.ray_engine import RayOptions, Replicas
from edgekit.runtimes.server import BatchOptions, NodeOptions, Security


@pytest.mark.parametrize(("text", "least", "most"), [("3", 3, 3), ("2:8", 2, 8), ("1:1", 1, 1), (" 4 ", 4, 4)])
def test_replicas_are_a_number_or_a_range(text: str, least: int, most: int) -> None:
    replicas = Replicas.parse(text)
    assert (replicas.least, replicas.most, replicas.scales) == (least, most, least < most)
    assert Replicas.parse(str(replicas)) == replicas


@pytest.mark.parametrize("text", ["", "0", "8:2", "0:3", "2:", ":8", "2:8:9", "-1", "two", "1.5", "99999", "٣"])
def test_other_words_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Replicas.parse(text)
    assert "--replicas 2:8" in caught.value.hint


def test_a_client_ca_is_refused_because_the_proxy_would_not_ask_for_it() -> None:
    node = NodeOptions(security=Security("secret", None, Path("ca.pem")))
    with pytest.raises(UsageError, match="client-ca"):
        RayOptions(node)


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port", ":6379", "10.0.0.1:6379/x"])
def test_a_cluster_is_found_or_named_by_host_and_port(address: str) -> None:
    with pytest.raises(UsageError, match="allowed auto or host:port"):
        RayOptions(address=address)
    for fine in ("", "auto", "10.0.0.1:6379", "[::1]:6379", "head.local:6379"):
        assert RayOptions(address=fine).address == fine


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0), (-1, 0), (1, -0.5)])
def test_a_replica_wants_cpus(cpus: float, gpus: float) -> None:
    with pytest.raises(UsageError, match="allowed CPUs above 0"):
        RayOptions(cpus=cpus, gpus=gpus)


def test_the_node_in_a_replica_listens_to_nobody_else_and_keeps_the_rest() -> None:
    security = Security("secret", (Path("cert.pem"), Path("key.pem")))
    options = RayOptions(NodeOptions(tier="cloud", host="0.0.0.0", port=8, grpc_port=9, security=security), cpus=2.5)
    node = options.replica_node
    assert (node.host, node.port, node.grpc_port, node.tier) == ("127.0.0.1", None, 0, "cloud")
    assert RayOptions().replica_node.grpc_port is None
    assert node.threads == 2
    assert (node.security.token, node.security.certificate) == ("secret", None)


def test_load_follows_from_the_batch() -> None:
    batch = BatchOptions(max_batch=8, queue=20, workers=2)
    options = RayOptions(NodeOptions(batch=batch))
    assert options.target_ongoing == 16
    assert options.max_ongoing == 36
    assert options.max_queued == 20
    assert RayOptions(NodeOptions(batch=BatchOptions(max_batch=1))).target_ongoing == 2

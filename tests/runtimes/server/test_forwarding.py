"""Plans over two nodes: the edge runs its part and asks the cloud for the rest."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import DeadlineError, MismatchError, UnreachableError
from edgekit.runtimes.codecs.base import open_codec
from edgekit.runtimes.codecs.frame import Frame, pack
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import NodeClient
from edgekit.runtimes.protocol.frames import Served, Wish, frame_call
from edgekit.runtimes.server import Node

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 6)


def coded(bundle: Path, part: str, features: np.ndarray, rate: int = 0) -> tuple[bytes, str]:
    """What the head would send to `part` in the variant `three`: a frame, and the plan's digest."""
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
        variant = manifest.variant("three")
        entry = manifest.codec(variant.codecs[variant.parts.index(part) - 1])
        plan = manifest.plan_digest("three")
        payload = open_codec(entry, None).encode([features], rate)
        digests = (plan, manifest.codec_digest(entry.name), manifest.part(part).sha256)
        return pack(Frame(payload, (features.shape,), rate, *digests)), plan


def test_edge_runs_its_part_and_returns_the_answer_of_the_cloud(
    split_bundle: Path, serve: Callable[..., Node], expected: Callable[..., np.ndarray]
) -> None:
    cloud = serve(split_bundle, tier="cloud")
    edge = serve(split_bundle, tier="edge", upstream=cloud.grpc_url)
    frame, plan = coded(split_bundle, "middle", X * 2, rate=1)
    with NodeClient(edge.grpc_url) as client:
        answer = client.infer(frame_call("net.middle", [frame], Wish(plan=plan, next_rate=1, deadline_ms=5000)))
    np.testing.assert_allclose(answer.tensors["scores"], expected(X), atol=1e-2)
    served = Served.of(answer)
    assert served.tiers == ("edge", "cloud")
    assert served.rates == (1, 1)
    assert served.forward_ms > 0 and served.compute_ms > 0


def test_cloud_alone_runs_all_that_is_left_of_the_plan(
    split_bundle: Path, serve: Callable[..., Node], expected: Callable[..., np.ndarray]
) -> None:
    cloud = serve(split_bundle, tier="cloud")
    frame, plan = coded(split_bundle, "middle", X * 2)
    with NodeClient(cloud.grpc_url) as client:
        answer = client.infer(frame_call("net.middle", [frame], Wish(plan=plan)))
    np.testing.assert_allclose(answer.tensors["scores"], expected(X), rtol=1e-6)
    assert Served.of(answer).tiers == ("cloud",)


def test_without_a_plan_only_the_named_part_runs(split_bundle: Path, serve: Callable[..., Node]) -> None:
    edge = serve(split_bundle, tier="edge")
    with NodeClient(edge.grpc_url) as client:
        answer = client.infer(InferCall("net.middle", {"scaled": X}))
    np.testing.assert_allclose(answer.tensors["shifted"], X + 1)


def test_a_model_that_only_the_upstream_holds_is_passed_up(
    split_bundle: Path, serve: Callable[..., Node], expected: Callable[..., np.ndarray]
) -> None:
    cloud = serve(split_bundle, tier="cloud")
    edge = serve(split_bundle, tier="edge", upstream=cloud.grpc_url)
    with NodeClient(edge.grpc_url) as client:
        answer = client.infer(InferCall("net.tail", {"shifted": X * 2 + 1}))
    np.testing.assert_allclose(answer.tensors["scores"], expected(X), rtol=1e-6)
    assert Served.of(answer).tiers == ("cloud",)


def test_an_unreachable_upstream_is_said_to_be_so(
    split_bundle: Path, serve: Callable[..., Node], free_port: int
) -> None:
    edge = serve(split_bundle, tier="edge", upstream=f"grpc://127.0.0.1:{free_port}")
    frame, plan = coded(split_bundle, "middle", X * 2)
    with NodeClient(edge.grpc_url) as client, pytest.raises(UnreachableError, match=f"127.0.0.1:{free_port}"):
        client.infer(frame_call("net.middle", [frame], Wish(plan=plan)))


def test_a_plan_that_goes_on_without_an_upstream_is_refused(split_bundle: Path, serve: Callable[..., Node]) -> None:
    edge = serve(split_bundle, tier="edge")
    frame, plan = coded(split_bundle, "middle", X * 2)
    with NodeClient(edge.grpc_url) as client, pytest.raises(UnreachableError, match="no upstream"):
        client.infer(frame_call("net.middle", [frame], Wish(plan=plan)))


def test_nodes_with_different_bundles_do_not_answer_together(
    split_bundle: Path, other_bundle: Path, serve: Callable[..., Node]
) -> None:
    cloud = serve(other_bundle, tier="cloud")
    edge = serve(split_bundle, tier="edge", upstream=cloud.grpc_url)
    frame, plan = coded(split_bundle, "middle", X * 2)
    with NodeClient(edge.grpc_url) as client, pytest.raises(MismatchError, match="plan"):
        client.infer(frame_call("net.middle", [frame], Wish(plan=plan)))


def test_nodes_that_are_each_others_upstream_do_not_forward_for_ever(
    split_bundle: Path, serve: Callable[..., Node], free_port: int
) -> None:
    first = serve(split_bundle, tier="edge", upstream=f"grpc://127.0.0.1:{free_port}")
    serve(split_bundle, tier="edge", grpc_port=free_port, upstream=first.grpc_url)
    with NodeClient(first.grpc_url) as client, pytest.raises(UnreachableError, match="forwarded 4 times"):
        client.infer(InferCall("net.nothing", {"x": X}))


def test_an_upstream_that_is_slower_than_the_deadline_is_not_waited_for(
    split_bundle: Path, serve: Callable[..., Node]
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        edge = serve(split_bundle, tier="edge", upstream=f"grpc://127.0.0.1:{silent.getsockname()[1]}")
        frame, plan = coded(split_bundle, "middle", X * 2)
        with NodeClient(edge.grpc_url) as client, pytest.raises(DeadlineError):
            client.infer(frame_call("net.middle", [frame], Wish(plan=plan, deadline_ms=200.0)))


def test_an_upstream_that_comes_back_is_used_again(
    split_bundle: Path, serve: Callable[..., Node], free_port: int
) -> None:
    edge = serve(split_bundle, tier="edge", upstream=f"grpc://127.0.0.1:{free_port}")
    call = InferCall("net.tail", {"shifted": X})
    with NodeClient(edge.grpc_url) as client:
        with pytest.raises(UnreachableError):
            client.infer(call)
        serve(split_bundle, tier="cloud", grpc_port=free_port)
        end = time.monotonic() + 20
        while True:
            try:
                answer = client.infer(call)
                break
            except UnreachableError:
                assert time.monotonic() < end
                time.sleep(0.05)
    assert answer.tensors["scores"].shape == (1, 3)

"""A node's life: ports, versions, bounds, draining."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import (
    BundleError,
    DeadlineError,
    InputError,
    MismatchError,
    NodeError,
    OverloadedError,
    UnreachableError,
)
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import NodeClient
from edgekit.runtimes.protocol.frames import Wish
from edgekit.runtimes.protocol.messages import METHODS
from edgekit.runtimes.server import BatchOptions, Node, NodeOptions

WAIT_S = 10


def call(value: float = 0.0, rows: int = 1, wish: Wish = Wish(), version: str = "") -> InferCall:
    return InferCall("net.tail", {"shifted": np.full((rows, 6), value, np.float32)}, wish.parameters(), version)


class Gate:
    """Holds every run of a model until it is opened."""

    def __init__(self, node: Node, name: str) -> None:
        self.open, self.entered = threading.Event(), threading.Semaphore(0)
        model = node.catalog.find(name)
        self.depth = lambda: model.depth
        run = model._batcher._free[0][0]

        def held(feeds: Any) -> Any:
            self.entered.release()
            assert self.open.wait(WAIT_S)
            return run(feeds)

        model._batcher._free = [[held]]

    def wait_until_waiting(self, count: int) -> None:
        for _ in range(1000 * WAIT_S):
            if self.depth() >= count:
                return
            threading.Event().wait(0.001)
        raise AssertionError(f"{self.depth()} wait, wanted {count}")


def test_a_full_queue_is_overloaded_over_grpc_and_429_with_retry_after_over_rest(
    split_bundle: Path, serve: Callable[..., Node]
) -> None:
    node = serve(split_bundle, tier="cloud", port=0, batch=BatchOptions(max_batch=2, queue=2))
    gate = Gate(node, "net.tail")
    body = {"inputs": [{"name": "shifted", "shape": [1, 6], "datatype": "FP32", "data": [0.0] * 6}]}
    with ThreadPoolExecutor(3) as pool, NodeClient(node.grpc_url) as client:
        inside = [pool.submit(client.infer, call())]
        assert gate.entered.acquire(timeout=WAIT_S)
        inside += [pool.submit(client.infer, call()) for _ in range(2)]
        gate.wait_until_waiting(2)
        with pytest.raises(OverloadedError, match=r"queue of net\.tail is full"):
            client.infer(call())
        refused = httpx.post(f"{node.rest_url}/v2/models/net.tail/infer", json=body)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        gate.open.set()
        assert all(future.result(WAIT_S) for future in inside)


@pytest.mark.parametrize("how", ["parameter", "transport"])
def test_a_deadline_ends_a_call_that_waits(split_bundle: Path, serve: Callable[..., Node], how: str) -> None:
    node = serve(split_bundle, tier="cloud")
    gate = Gate(node, "net.tail")
    with ThreadPoolExecutor(1) as pool, NodeClient(node.grpc_url) as client:
        inside = pool.submit(client.infer, call())
        assert gate.entered.acquire(timeout=WAIT_S)
        wish = Wish(deadline_ms=30.0) if how == "parameter" else Wish()
        with pytest.raises(DeadlineError):
            client.infer(call(wish=wish), timeout_s=0.03 if how == "transport" else WAIT_S)
        gate.open.set()
        inside.result(WAIT_S)


def test_draining_answers_what_is_inside_and_refuses_the_rest(split_bundle: Path) -> None:
    node = Node([split_bundle], NodeOptions(tier="cloud", threads=1, batch=BatchOptions(max_batch=1)))
    node.start()
    gate = Gate(node, "net.tail")
    with ThreadPoolExecutor(8) as pool, NodeClient(node.grpc_url) as client:
        inside = [pool.submit(client.infer, call(1.0)) for _ in range(5)]
        gate.wait_until_waiting(4)
        stopping = pool.submit(node.stop, WAIT_S)
        for _ in range(1000):
            if not client.call("ServerReady").ready:
                break
        assert httpx.get(f"{node.rest_url}/v2/health/ready").status_code == 503
        assert httpx.get(f"{node.rest_url}/v2/health/live").status_code == 200
        with pytest.raises(UnreachableError, match="draining"):
            client.infer(call())
        gate.open.set()
        assert stopping.result(WAIT_S) is True
        answers = [future.result(WAIT_S).tensors["scores"] for future in inside]
    assert len(answers) == 5 and all(np.array_equal(answer, answers[0]) for answer in answers)


def test_stopping_gives_up_on_what_outlasts_the_grace(split_bundle: Path) -> None:
    node = Node([split_bundle], NodeOptions(tier="cloud", threads=1, port=None))
    node.start()
    gate = Gate(node, "net.tail")
    with ThreadPoolExecutor(2) as pool, NodeClient(node.grpc_url) as client:
        inside = pool.submit(client.infer, call())
        assert gate.entered.acquire(timeout=WAIT_S)
        stopping = pool.submit(node.stop, 0.05)
        with pytest.raises(UnreachableError):
            inside.result(WAIT_S)
        gate.open.set()
        assert stopping.result(WAIT_S) is False


@pytest.mark.parametrize("how", ["grace", "hurry"])
def test_what_waits_when_the_grace_is_over_is_refused_and_never_runs(split_bundle: Path, how: str) -> None:
    node = Node([split_bundle], NodeOptions(tier="cloud", threads=1, port=None, batch=BatchOptions(max_batch=1)))
    node.start()
    gate = Gate(node, "net.tail")
    with ThreadPoolExecutor(4) as pool:
        inside = [pool.submit(node.engine.infer, call()) for _ in range(3)]
        gate.wait_until_waiting(2)
        stopping = pool.submit(node.stop, 0.05 if how == "grace" else 3600.0)
        if how == "hurry":
            node.hurry()
        done, runs = wait(inside, WAIT_S, return_when=FIRST_EXCEPTION)
        assert runs and all(isinstance(one.exception(), UnreachableError) for one in done)
        gate.open.set()
        assert stopping.result(WAIT_S) is False
    assert sum(one.exception() is None for one in inside) == 1


def test_a_stopped_node_is_unreachable_and_stops_once(split_bundle: Path) -> None:
    node = Node([split_bundle], NodeOptions(tier="cloud", threads=1, port=None))
    with node:
        url = node.grpc_url
    node.stop()
    with NodeClient(url) as client, pytest.raises(UnreachableError, match=url):
        client.infer(call())


@pytest.mark.parametrize("port", ["port", "grpc_port"])
def test_a_taken_port_is_a_node_error_and_leaves_nothing_behind(
    split_bundle: Path, serve: Callable[..., Node], port: str
) -> None:
    node = serve(split_bundle, tier="cloud", port=0)
    taken = int((node.rest_url if port == "port" else node.grpc_url).rpartition(":")[2])
    before = threading.active_count()
    with pytest.raises(NodeError, match="cannot listen on"):
        Node([split_bundle], NodeOptions(tier="cloud", threads=1, **{port: taken}))
    assert threading.active_count() <= before


def test_bundles_of_one_name_are_versions_and_the_newest_answers(
    split_bundle: Path, other_bundle: Path, serve: Callable[..., Node], expected: Callable[..., np.ndarray]
) -> None:
    node = serve(split_bundle, other_bundle, tier="cloud")
    x = np.ones((1, 6), np.float32)
    with Bundle.open(split_bundle) as opened:
        first, plan = opened.digest, opened.manifest.plan_digest("three")
    with NodeClient(node.grpc_url) as client:
        newest = client.infer(call(3.0))
        assert newest.version == "2"
        np.testing.assert_allclose(newest.tensors["scores"], 2 * expected(x), rtol=1e-5)
        for older in (call(3.0, version="1"), call(3.0, wish=Wish(bundle=first)), call(3.0, wish=Wish(plan=plan))):
            answer = client.infer(older)
            assert answer.version == "1"
            np.testing.assert_allclose(answer.tensors["scores"], expected(x), rtol=1e-5)
        with pytest.raises(MismatchError):
            client.infer(call(3.0, version="2", wish=Wish(bundle=first)))


def test_a_part_with_a_fixed_batch_takes_frames_one_by_one(
    tmp_path: Path, make_split: Callable[..., Path], serve: Callable[..., Node]
) -> None:
    node = serve(make_split(tmp_path / "fixed.edgekit", batch=1), tier="cloud")
    with NodeClient(node.grpc_url) as client:
        assert client.infer(call(1.0)).tensors["scores"].shape == (1, 3)
        with pytest.raises(InputError, match=r"shape \[2, 6\], allowed \[1, 6\]"):
            client.infer(call(1.0, rows=2))
        assert client.call("ModelConfig", _named("ModelConfig", "net.tail")).config.max_batch_size == 0


def _named(method: str, name: str) -> Any:
    return METHODS[method][0](name=name)


def test_more_rows_than_a_batch_holds_are_refused(split_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(split_bundle, tier="cloud", batch=BatchOptions(max_batch=4))
    with NodeClient(node.grpc_url) as client:
        assert len(client.infer(call(rows=4)).tensors["scores"]) == 4
        with pytest.raises(InputError, match="allowed 1 to 4"):
            client.infer(call(rows=5))


def test_an_oversized_message_is_refused(split_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(split_bundle, tier="cloud", max_bytes=4096)
    with NodeClient(node.grpc_url) as client, pytest.raises(OverloadedError, match="4096"):
        client.infer(call(rows=1000))


def test_bytes_that_are_no_message_are_an_input_error(split_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(split_bundle, tier="cloud")
    with grpc.insecure_channel(node.grpc_url.removeprefix("grpc://")) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            infer(b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"")
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_node_holds_the_parts_of_its_tier_and_below(split_bundle: Path, serve: Callable[..., Node]) -> None:
    names = {
        tier: [model.name for model in serve(split_bundle, tier=tier).catalog.models]
        for tier in ("device", "edge", "cloud")
    }
    assert names == {"device": ["net.head"], "edge": ["net.middle"], "cloud": ["net.middle", "net.tail"]}


def test_bundles_that_cannot_be_served_are_refused(tmp_path: Path, split_bundle: Path) -> None:
    with pytest.raises(BundleError):
        Node([tmp_path / "missing.edgekit"])
    with pytest.raises(NodeError, match="twice"):
        Node([split_bundle, split_bundle])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"edgekit_max_step": 3}, "did you mean edgekit_max_steps"),
        ({"edgekit_zzz": 3}, "unknown parameter 'edgekit_zzz'"),
    ],
)
def test_a_parameter_of_ours_that_is_none_is_refused(
    split_bundle: Path, serve: Callable[..., Node], parameters: dict[str, int], said: str
) -> None:
    node = serve(split_bundle, tier="cloud")
    with pytest.raises(InputError) as caught:
        node.engine.infer(InferCall("net.tail", {"shifted": np.zeros((1, 6), np.float32)}, parameters))
    assert said in str(caught.value)
    node.engine.infer(InferCall("net.tail", {"shifted": np.zeros((1, 6), np.float32)}, {"priority": 3}))


def test_tritons_timeout_is_a_deadline_too() -> None:
    assert Wish.of({"timeout": 2000}).deadline_ms == 2.0
    assert Wish.of({"timeout": 2000, "edgekit_deadline_ms": 1.5}).deadline_ms == 1.5
    assert Wish.of({"timeout": 0}).deadline_ms is None


@pytest.mark.parametrize("beyond", [1.001e9, 1e30, 1e300, float("inf"), float("nan"), 10**400])
def test_a_deadline_beyond_what_can_be_waited_for_is_refused_with_the_bound(beyond: float) -> None:
    with pytest.raises(InputError, match=r"edgekit_deadline_ms is .*, allowed a number of milliseconds up to 1e\+09"):
        Wish.of({"edgekit_deadline_ms": beyond})
    with pytest.raises(InputError, match=r"timeout is .*, allowed microseconds up to 1e\+12"):
        Wish.of({"timeout": (1 << 63) - 1})


def test_the_longest_deadline_is_answered_and_a_passed_one_is_late_however_long_ago(
    split_bundle: Path, serve: Callable[..., Node]
) -> None:
    node = serve(split_bundle, tier="cloud")
    tensors = {"shifted": np.zeros((1, 6), np.float32)}
    node.engine.infer(InferCall("net.tail", tensors, {"edgekit_deadline_ms": 1e9, "timeout": 10**12}))
    for passed in (0, -1.0, -1e300, -(10**400)):
        with pytest.raises(DeadlineError):
            node.engine.infer(InferCall("net.tail", tensors, {"edgekit_deadline_ms": passed}))

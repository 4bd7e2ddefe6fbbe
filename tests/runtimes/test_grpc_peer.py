"""GrpcPeer against a server of a few lines, which does what a test says: errors, silence, damage."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from edgekit.errors import (
    AuthenticationError,
    DeadlineError,
    EdgekitError,
    FrameError,
    InputError,
    MismatchError,
    OverloadedError,
    UnreachableError,
    UsageError,
)
from edgekit.runtimes.grpc_peer import GrpcPeer
from edgekit.runtimes.peer import Request, UpstreamError
from edgekit.runtimes.protocol import frames, messages
from edgekit.runtimes.protocol.calls import InferAnswer, answer_to_message, call_from_message
from edgekit.runtimes.protocol.client import ClientOptions
from edgekit.runtimes.protocol.status import ERROR_KEY

REQUEST = Request("split", "rest", "p" * 64, frames=(b"frame",), rates=(1, 2), id="abc")


class Server:
    """`methods`: name -> (request message, context) -> response message or its bytes."""

    def __init__(self) -> None:
        self.methods: dict[str, Callable[[Any, Any], Any]] = {}
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def service(self, details: Any) -> Any:
        name = details.method.rsplit("/", 1)[1]

        def handle(data: bytes, context: Any) -> bytes:
            answer = self.methods[name](messages.METHODS[name][0].FromString(data), context)
            return answer if isinstance(answer, bytes) else answer.SerializeToString()

        return grpc.unary_unary_rpc_method_handler(handle) if name in self.methods else None

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.stop()


@pytest.fixture
def peer(server: Server) -> Iterator[GrpcPeer]:
    made = GrpcPeer(f"grpc://127.0.0.1:{server.port}", "net", ["rest", "middle"], ClientOptions(token="secret"))
    yield made
    made.close()


def answer(id: str = "abc", **parameters: Any) -> Any:
    return answer_to_message(InferAnswer("net.rest", "1", {"y": np.ones((1, 2), np.float32)}, parameters, id))


def test_a_request_carries_frame_plan_rate_deadline_id_and_token(server: Server, peer: GrpcPeer) -> None:
    seen: list[Any] = []

    def infer(request: Any, context: Any) -> Any:
        seen.append((call_from_message(request), dict(context.invocation_metadata()), context.time_remaining()))
        served = frames.Served(("edge", "cloud"), (1, 2), compute_ms=3.0, queue_ms=1.0, forward_ms=7.0)
        return answer(**served.parameters())

    server.methods["ModelInfer"] = infer
    reply = peer.ask(REQUEST, 5.0).result(5)
    call, metadata, left_s = seen[0]
    assert (call.model, call.id, frames.frames_of(call)) == ("net.rest", "abc", [b"frame"])
    assert call.parameters[frames.PLAN] == "p" * 64 and call.parameters[frames.NEXT_RATE] == 2
    assert 0 < call.parameters[frames.DEADLINE] <= 5000 and 0 < left_s <= 5.1
    assert metadata["authorization"] == "Bearer secret"
    assert (reply.tier, reply.id, reply.compute_ms, reply.queue_ms, reply.forward_ms) == ("cloud", "abc", 3, 1, 7)
    assert reply.sent_bytes > REQUEST.size_bytes and reply.size_bytes > 8
    np.testing.assert_array_equal(reply.outputs["y"], np.ones((1, 2)))


def test_a_handshake_gathers_what_all_parts_say_and_misses_none(server: Server, peer: GrpcPeer) -> None:
    def config(request: Any, context: Any) -> Any:
        if request.name == "net.middle":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        values = {frames.BUNDLE: "b" * 64, f"{frames.PLAN}.split": "p" * 64, f"{frames.CODEC}.c": "c" * 64}
        parameters = {key: {"string_value": value} for key, value in values.items()}
        return messages.METHODS["ModelConfig"][1](config={"name": request.name, "parameters": parameters})

    server.methods["ModelConfig"] = config
    info = peer.handshake(5.0).result(5)
    assert (info.bundle_digest, info.plans, info.codecs) == ("b" * 64, {"split": "p" * 64}, {"c": "c" * 64})


def test_a_handshake_finds_older_versions_by_their_bundle(server: Server, peer: GrpcPeer) -> None:
    asked: list[tuple[str, str]] = []

    def config(request: Any, context: Any) -> Any:
        asked.append((request.name, request.version))
        letter = {"": "c", "3": "c", "2": "b", "1": "a"}[request.version]
        plan = "rest" if request.name == "net.rest" else "all"
        values = {frames.BUNDLE: letter * 64, f"{frames.PLAN}.{plan}": letter * 64, frames.VERSIONS: "1,2,3"}
        parameters = {key: {"string_value": value} for key, value in values.items()}
        return messages.METHODS["ModelConfig"][1](config={"name": request.name, "parameters": parameters})

    server.methods["ModelConfig"] = config
    info = peer.handshake(5.0).result(5)
    assert (info.bundle_digest, info.plans) == ("c" * 64, {"rest": "c" * 64, "all": "c" * 64})
    assert [(other.bundle_digest, dict(other.plans)) for other in info.others] == [
        (letter * 64, {"rest": letter * 64, "all": letter * 64}) for letter in "ba"
    ]
    assert len(asked) == 2 * 3


@pytest.mark.parametrize(
    ("code", "name", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "", AuthenticationError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", OverloadedError),
        (grpc.StatusCode.FAILED_PRECONDITION, "", MismatchError),
        (grpc.StatusCode.NOT_FOUND, "", MismatchError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", DeadlineError),
        (grpc.StatusCode.INVALID_ARGUMENT, "", InputError),
        (grpc.StatusCode.DATA_LOSS, "FrameError", FrameError),
        (grpc.StatusCode.UNAVAILABLE, "", UnreachableError),
        (grpc.StatusCode.UNAVAILABLE, "UnreachableError", UpstreamError),
        (grpc.StatusCode.UNAVAILABLE, "NodeError", UpstreamError),
    ],
)
def test_each_status_is_its_error(server: Server, peer: GrpcPeer, code, name: str, kind: type[EdgekitError]) -> None:
    def infer(request: Any, context: Any) -> Any:
        if name:
            context.set_trailing_metadata(((ERROR_KEY, name),))
        context.abort(code, "because")

    server.methods["ModelInfer"] = infer
    error = peer.ask(REQUEST, 5.0).exception(5)
    assert type(error) is kind
    assert "because" in str(error)


def test_silence_ends_at_the_deadline(server: Server, peer: GrpcPeer) -> None:
    release = threading.Event()
    server.methods["ModelInfer"] = lambda request, context: release.wait(10) and answer()
    try:
        assert isinstance(peer.ask(REQUEST, 0.1).exception(5), DeadlineError)
    finally:
        release.set()


def test_a_cancelled_call_is_let_go_of(server: Server, peer: GrpcPeer) -> None:
    release, inside = threading.Event(), threading.Event()

    def infer(request: Any, context: Any) -> Any:
        inside.set()
        release.wait(10)
        return answer()

    server.methods["ModelInfer"] = infer
    future = peer.ask(REQUEST, 10.0)
    assert inside.wait(5)
    assert future.cancel()
    release.set()
    with pytest.raises(CancelledError):
        future.result(5)


@pytest.mark.parametrize("at", range(0, 120, 7))
def test_a_damaged_answer_is_an_error_or_says_the_same(server: Server, peer: GrpcPeer, at: int) -> None:
    whole = answer(**frames.Served(("edge",), (1,)).parameters()).SerializeToString()
    place = at % len(whole)
    server.methods["ModelInfer"] = lambda request, context: (
        whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :]
    )
    future = peer.ask(REQUEST, 5.0)
    error = future.exception(5)
    if error is None:
        outputs = future.result().outputs
        assert "y" not in outputs or np.array_equal(outputs["y"].ravel(), np.ones(2))
    else:
        assert isinstance(error, EdgekitError)


def test_padding_goes_up_and_nothing_of_it_is_understood(server: Server, peer: GrpcPeer) -> None:
    sizes: list[int] = []

    def live(request: Any, context: Any) -> Any:
        sizes.append(request.ByteSize())
        return messages.METHODS["ServerLive"][1](live=True)

    server.methods["ServerLive"] = live
    for padding in (0, 1, 127, 128, 20_000):
        peer.ping(5.0, padding).result(5)
    assert sizes[0] == 0
    assert [size - padding for size, padding in zip(sizes[1:], (1, 127, 128, 20_000), strict=True)] == [3, 3, 4, 5]


def test_nobody_there_is_unreachable() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    peer = GrpcPeer(f"grpc://127.0.0.1:{port}", "net", ["rest"])
    try:
        assert type(peer.handshake(5.0).exception(10)) is UnreachableError
        assert type(peer.ask(REQUEST, 5.0).exception(10)) is UnreachableError
    finally:
        peer.close()


def test_after_closing_every_call_is_unreachable(peer: GrpcPeer) -> None:
    peer.close()
    peer.close()
    assert isinstance(peer.ask(REQUEST, 5.0).exception(5), UnreachableError)
    assert isinstance(peer.handshake(5.0).exception(5), UnreachableError)


def test_a_connection_on_which_a_handshake_hung_is_thrown_away(server: Server, peer: GrpcPeer) -> None:
    release = threading.Event()
    server.methods["ModelConfig"] = lambda request, context: release.wait(10) and b""
    before = peer._client
    assert isinstance(peer.handshake(0.1).exception(5), DeadlineError)
    release.set()
    assert peer.handshake(5.0).exception(5) is None
    assert peer._client is not before


@pytest.mark.parametrize("url", ["http://x:1", "grpc://x", "x:1", "grpcs://x:1/path"])
def test_another_kind_of_address_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="grpc"):
        GrpcPeer(url, "net", ["rest"])

"""The face over gRPC before handles that behave as Ray's do when replicas go; callers are edgekit's own client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from edgekit.errors import DeadlineError, EdgekitError, InputError, NodeError, OverloadedError, UnreachableError
from edgekit.runtimes.protocol import messages
from edgekit.runtimes.protocol.client import ClientOptions, NodeClient
from edgekit.runtimes.ray_engine.grpc_face import GrpcFace, Metadata, Said
from edgekit.runtimes.ray_engine.patience import MAX_SENDS
from edgekit.runtimes.server import Security

ray_exceptions = pytest.importorskip("ray.exceptions", exc_type=ImportError)
serve_exceptions = pytest.importorskip("ray.serve.exceptions", exc_type=ImportError)

Step = Said | Exception
LIVE = Said(0, messages.METHODS["ServerLive"][1](live=True).SerializeToString())


class Handle:
    """Goes through `steps`, the last again and again; remembers what it was given."""

    def __init__(self, *steps: Step) -> None:
        self.steps, self.given = steps, list[tuple[str, bytes, Metadata, float | None]]()

    def __call__(self, method: str, data: bytes, metadata: Metadata, left_s: float | None) -> Said:
        self.given.append((method, data, metadata, left_s))
        step = self.steps[min(len(self.given), len(self.steps)) - 1]
        if isinstance(step, Exception):
            raise step
        return step


@pytest.fixture
def ask() -> Iterator[Callable[..., Any]]:
    """Calls ServerLive through a face before the handle; raises as a node's caller sees it."""
    faces: list[GrpcFace] = []

    def call(handle: Handle, *, retry_s: float = 5.0, timeout_s: float | None = None) -> Any:
        face = GrpcFace(handle, Security(), "127.0.0.1", 0, 1 << 20, 4, retry_s)
        faces.append(face)
        face.start()
        with NodeClient(f"grpc://127.0.0.1:{face.port}", ClientOptions("secret")) as client:
            return client.call("ServerLive", timeout_s=timeout_s, headers={"traceparent": "00-1-2-3"})

    yield call
    for face in faces:
        face.stop(0.0)


def unavailable(kind: str) -> Said:
    return Said(grpc.StatusCode.UNAVAILABLE.value[0], b"", "going", (("edgekit-error", kind),))


def test_a_call_goes_on_as_it_came_with_the_callers_metadata(ask: Callable[..., Any]) -> None:
    handle = Handle(LIVE)
    assert ask(handle, timeout_s=30.0).live is True
    ((method, data, metadata, left_s),) = handle.given
    assert (method, data) == ("ServerLive", b"")
    assert dict(metadata) == {"authorization": "Bearer secret", "traceparent": "00-1-2-3"}
    assert left_s is not None and 0 < left_s <= 30.0
    ask(handle)
    assert handle.given[1][3] is None


@pytest.mark.parametrize(
    "lost",
    [
        ray_exceptions.ActorDiedError(),
        serve_exceptions.DeploymentUnavailableError.__new__(serve_exceptions.DeploymentUnavailableError),
        unavailable("NodeError"),
        unavailable("UnreachableError"),
        Said(grpc.StatusCode.UNAVAILABLE.value[0], b"", "socket closed"),
    ],
)
def test_what_was_lost_is_sent_again(ask: Callable[..., Any], lost: Step) -> None:
    handle = Handle(lost, LIVE)
    assert ask(handle).live is True
    assert len(handle.given) == 2


def test_a_call_that_kills_its_replica_does_not_go_through_all_of_them(ask: Callable[..., Any]) -> None:
    handle = Handle(ray_exceptions.ActorDiedError())
    with pytest.raises(UnreachableError, match="gone"):
        ask(handle)
    assert len(handle.given) == MAX_SENDS


@pytest.mark.parametrize(
    ("step", "kind", "said"),
    [
        (serve_exceptions.BackPressureError(num_queued_requests=9, max_queued_requests=9), OverloadedError, "busy"),
        (TimeoutError(), DeadlineError, "deadline"),
        (
            Said(grpc.StatusCode.INVALID_ARGUMENT.value[0], b"", "no such input", (("edgekit-error", "InputError"),)),
            InputError,
            "no such input",
        ),
    ],
)
def test_an_error_is_an_answer(ask: Callable[..., Any], step: Step, kind: type[EdgekitError], said: str) -> None:
    handle = Handle(step, LIVE)
    with pytest.raises(kind, match=said):
        ask(handle)
    assert len(handle.given) == 1


def test_without_a_replica_it_ends_in_its_time(ask: Callable[..., Any]) -> None:
    handle = Handle(unavailable("NodeError"))
    with pytest.raises(UnreachableError, match="going"):
        ask(handle, retry_s=0.0)
    assert len(handle.given) == 1


def test_streams_are_not_passed_on() -> None:
    face = GrpcFace(Handle(LIVE), Security(), "127.0.0.1", 0, 1 << 20, 4, 1.0)
    face.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{face.port}") as channel:
            stream = channel.stream_stream(f"/{messages.SERVICE}/ModelStreamInfer")
            with pytest.raises(grpc.RpcError) as caught:
                next(stream(iter([b""])))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        face.stop(0.0)


def test_a_taken_port_is_refused_with_a_hint() -> None:
    face = GrpcFace(Handle(LIVE), Security(), "127.0.0.1", 0, 1 << 20, 4, 1.0)
    try:
        with pytest.raises(NodeError) as caught:
            GrpcFace(Handle(LIVE), Security(), "127.0.0.1", face.port, 1 << 20, 4, 1.0)
        assert "--grpc-port" in caught.value.hint
    finally:
        face.stop(0.0)

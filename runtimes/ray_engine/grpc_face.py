"""The protocol over gRPC before replicas on Ray: calls go on as bytes, to whichever replica Ray's router picks.

Every replica has its node's own gRPC server on its machine's loopback, which reads and answers them; this face knows
their names alone. It lives in the process that started the cluster. `ModelStreamInfer` is not passed on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from edgekit.errors import DeadlineError, EdgekitError, NodeError, OverloadedError, SessionError, UnreachableError
from edgekit.runtimes.protocol.frames import LONGEST_S
from edgekit.runtimes.protocol.messages import METHODS, SERVICE
from edgekit.runtimes.protocol.status import ERROR_KEY, RETRY_KEY, error_kind, grpc_code
from edgekit.runtimes.ray_engine.answer import LEAVING
from edgekit.runtimes.ray_engine.patience import Patience
from edgekit.runtimes.server.security import Security

STREAMS = ("ModelStreamInfer",)
Metadata = list[tuple[str, str]]


@dataclass(frozen=True)
class Said:
    """What a replica's own server answered: the code's number, and for an error its details and trailing metadata."""

    code: int
    data: bytes = b""
    details: str = ""
    trailing: tuple[tuple[str, str], ...] = ()

    may_have_run = False

    @property
    def is_lost(self) -> bool:
        """The replica is about to go, and another one may answer."""
        kind = dict(self.trailing).get(ERROR_KEY)
        return self.code == grpc.StatusCode.UNAVAILABLE.value[0] and (kind is None or kind in LEAVING)


@dataclass(frozen=True)
class Kept:
    """No answer, and why; `may_have_run`: a replica had begun."""

    error: EdgekitError
    may_have_run: bool


# (method, request, metadata, seconds left) -> the answer; raises as Ray's handles do.
Call = Callable[[str, bytes, Metadata, float | None], Said]


class GrpcFace:
    """Bound at once, serving from `start`. `workers` bounds the calls inside."""

    def __init__(
        self, call: Call, security: Security, host: str, port: int, max_bytes: int, workers: int, retry_s: float
    ) -> None:
        """Raises NodeError where the port is taken."""
        self._send, self._retry_s = call, retry_s
        unary = {
            name: grpc.unary_unary_rpc_method_handler(partial(self._call, name))
            for name in METHODS
            if name not in STREAMS
        }
        self._server = grpc.server(
            ThreadPoolExecutor(workers, thread_name_prefix="edgekit-grpc"),
            handlers=[grpc.method_handlers_generic_handler(SERVICE, unary)],
            options=[
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=workers,
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = security.grpc_credentials()
        try:
            self.port: int = (
                self._server.add_insecure_port(address)
                if credentials is None
                else self._server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise NodeError(f"cannot listen on {address}", hint="choose another --grpc-port") from error

    def start(self) -> None:
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """No new calls; those inside have `grace_s`."""
        self._server.stop(grace_s).wait()

    def _call(self, method: str, data: bytes, context: Any) -> bytes:
        left_s = context.time_remaining()
        ends = time.monotonic() + left_s if left_s is not None and left_s < LONGEST_S else float("inf")
        metadata = [(key, value) for key, value in context.invocation_metadata() if _is_callers(key, value)]
        patience = Patience(self._retry_s, ends)
        while True:
            came = self._sent(method, data, metadata, patience)
            lost = came.is_lost if isinstance(came, Said) else isinstance(came.error, UnreachableError)
            pause_s = patience.pause_s(came.may_have_run) if lost else None
            if pause_s is None:
                break
            time.sleep(pause_s)
        if isinstance(came, Said):
            if came.code:
                context.set_trailing_metadata(came.trailing)
                context.abort(_CODES[came.code], came.details)
            return came.data
        _abort(context, came.error)
        raise came.error

    def _sent(self, method: str, data: bytes, metadata: Metadata, patience: Patience) -> Said | Kept:
        from ray.exceptions import RayActorError, RayError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

        try:
            return self._send(method, data, metadata, patience.left_s())
        except BackPressureError:
            full = OverloadedError("every replica is busy and the queue before them is full", hint="try again later")
            return Kept(full, False)
        except DeploymentUnavailableError:
            return Kept(UnreachableError("no replica is there for this request", hint="try again later"), False)
        except RayActorError:
            return Kept(UnreachableError("the replicas that had this request are gone", hint="send it again"), True)
        except TimeoutError:
            return Kept(DeadlineError("no replica answered by the deadline"), True)
        except (RayError, RayServeException) as error:
            return Kept(SessionError(f"the request failed: {type(error).__name__}"), True)


def through_handle(handle: Any) -> Call:
    """Calls `Replica.call_grpc` through a handle of the application."""

    def call(method: str, data: bytes, metadata: Metadata, left_s: float | None) -> Said:
        said: Said = handle.call_grpc.remote(method, data, metadata, left_s).result(timeout_s=left_s)
        return said

    return call


class Loopback:
    """A replica's way to its own node's server, from its event loop."""

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("grpc://")
        self._channel: Any = None

    async def call(self, method: str, data: bytes, metadata: Sequence[tuple[str, str]], left_s: float | None) -> Said:
        if self._channel is None:
            unbounded = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            self._channel = grpc.aio.insecure_channel(self._address, unbounded)
        try:
            answer = await self._channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=left_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            trailing = tuple((key, value) for key, value in error.trailing_metadata() or () if isinstance(value, str))
            return Said(error.code().value[0], b"", error.details() or "", trailing)
        return Said(0, answer)


def _is_callers(key: str, value: Any) -> bool:
    """What gRPC itself adds is added again on the way."""
    return isinstance(value, str) and not key.startswith(("grpc-", ":")) and key != "user-agent"


def _abort(context: Any, error: EdgekitError) -> None:
    """Raises, as gRPC has it."""
    metadata = [(ERROR_KEY, error_kind(error))]
    if isinstance(error, OverloadedError):
        metadata.append((RETRY_KEY, "1"))
    context.set_trailing_metadata(metadata)
    context.abort(grpc_code(error), error.message)


_CODES = {code.value[0]: code for code in grpc.StatusCode}

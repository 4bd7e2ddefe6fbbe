"""A node over gRPC: one channel, a deadline on every call, every failure as an edgekit error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

from edgekit.errors import DeadlineError, EdgekitError, MismatchError, UnreachableError
from edgekit.runtimes.peer import NodeInfo, Reply, Request, UpstreamError
from edgekit.runtimes.protocol import frames
from edgekit.runtimes.protocol.calls import InferCall, answer_from_message, call_to_message
from edgekit.runtimes.protocol.client import ClientOptions, NodeClient
from edgekit.runtimes.protocol.messages import METHODS, ModelInferResponse, method_path
from edgekit.runtimes.protocol.status import ERROR_KEY, from_grpc

# Field 1000, length-delimited, of a message that has no such field: any server skips it.
_PADDING_TAG = b"\xc2\x3e"

# Of each part; a node that serves more versions than these and the newest is not searched to the end.
MAX_OLDER_VERSIONS = 15

# What a node said, by part and version ("" is the newest).
Configs = Mapping[tuple[str, str], Any]

_T = TypeVar("_T")


class CallFuture(Future[_T], Generic[_T]):
    """A future whose `cancel` also lets go of the calls behind it."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Any] = []

    def cancel(self) -> bool:
        done = super().cancel()
        for call in self._calls:
            call.cancel()
        return done

    def settle(self, result: Callable[[], _T]) -> None:
        """With what `result` gives or the EdgekitError that it raises, unless it is settled or cancelled already."""
        with suppress(InvalidStateError):
            try:
                self.set_result(result())
            except EdgekitError as error:
                self.set_exception(error)
            except Exception as error:  # bytes that changed on the way may be anything; the caller must hear of it
                self.set_exception(UnreachableError(f"an answer that cannot be read: {type(error).__name__}: {error}"))


class GrpcPeer:
    """The node at `url` (grpc://host:port, grpcs://host:port), asked for parts of the bundle named `bundle`.

    `parts`: those that it may be asked for; the handshake compares what they belong to. A connection on which a
    handshake got no answer at all is thrown away with the next one: TCP would wait for many minutes.
    """

    def __init__(self, url: str, bundle: str, parts: Iterable[str], options: ClientOptions = ClientOptions()) -> None:
        """Raises UsageError for another kind of address, NodeError for certificate files that cannot be read."""
        self.url, self._bundle, self._parts, self._options = url, bundle, tuple(parts), options
        self._metadata = (("authorization", f"Bearer {options.token}"),) if options.token else ()
        self._lock = threading.Lock()
        self._client = NodeClient(url, options)
        self._is_stale = self._is_closed = False

    def handshake(self, deadline_s: float) -> Future[NodeInfo]:
        """The newest of each part, then what is served beside it: most nodes hold one version, and are asked once."""
        client = self._fresh_client()
        future: CallFuture[NodeInfo] = CallFuture()
        ends = time.monotonic() + deadline_s

        def on_newest(newest: Configs) -> None:
            older = [
                (part, version)
                for (part, _), answer in newest.items()
                for version in _older_versions(answer)[:MAX_OLDER_VERSIONS]
            ]
            if not older:
                future.settle(lambda: self._info(newest.values()))
                return
            left_s = ends - time.monotonic()
            self._ask_configs(client, future, older, left_s, lambda found: on_all(newest, found))

        def on_all(newest: Configs, older: Configs) -> None:
            bundles: dict[str, list[Any]] = {}
            for answer in older.values():
                bundles.setdefault(_parameter(answer, frames.BUNDLE), []).append(answer)
            others = tuple(self._info(answers) for answers in bundles.values())
            future.settle(lambda: replace(self._info(newest.values()), others=others))

        self._ask_configs(client, future, [(part, "") for part in self._parts], deadline_s, on_newest)
        return future

    def _ask_configs(
        self,
        client: NodeClient,
        future: CallFuture[NodeInfo],
        wanted: Sequence[tuple[str, str]],
        deadline_s: float,
        then: Callable[[Configs], None],
    ) -> None:
        """The configuration of each (part, version), all at once; `then` is called with those that are served, unless
        one of the calls failed, which settles `future`."""
        answers: dict[tuple[str, str], Any] = {}
        lock = threading.Lock()

        def done(key: tuple[str, str], call: Any) -> None:
            error = self._error(call)
            with lock:
                # A part that it does not serve is no failure: the plans that need it are missing in what it says.
                if error is None or isinstance(error, MismatchError):
                    answers[key] = None if error is not None else call.result()
                    is_last = len(answers) == len(wanted)
                else:
                    self._is_stale = self._is_stale or isinstance(error, DeadlineError)
                    future.settle(_raiser(error))
                    return
            if is_last:
                then({key: answers[key] for key in wanted if answers[key] is not None})

        request, response = METHODS["ModelConfig"]
        for part, version in wanted:
            message = request(name=frames.model_name(self._bundle, part), version=version).SerializeToString()
            self._start(
                client, future, "ModelConfig", message, response.FromString, deadline_s, partial(done, (part, version))
            )

    def ping(self, deadline_s: float, padding_bytes: int = 0) -> Future[None]:
        future: CallFuture[None] = CallFuture()
        padding = _PADDING_TAG + _varint(padding_bytes) + bytes(padding_bytes) if padding_bytes else b""
        self._start(
            self._client,
            future,
            "ServerLive",
            padding,
            bytes,
            deadline_s,
            lambda call: self._settle(future, call, _none),
        )
        return future

    def ask(self, request: Request, deadline_s: float) -> Future[Reply]:
        message = call_to_message(self._call(request, deadline_s)).SerializeToString()
        future: CallFuture[Reply] = CallFuture()
        done = partial(self._settle, future, read=partial(_reply, sent_bytes=len(message)))
        headers = () if request.headers is None else tuple(request.headers.items())
        self._start(self._client, future, "ModelInfer", message, bytes, deadline_s, done, headers)
        return future

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._client.close()

    def _call(self, request: Request, deadline_s: float) -> InferCall:
        """Raises what call_to_message raises for arrays that the protocol has no datatype for."""
        model = frames.model_name(self._bundle, request.part)
        wish = frames.Wish(
            plan=request.plan_digest,
            deadline_ms=1e3 * deadline_s,
            next_rate=request.rates[1] if len(request.rates) > 1 else 0,
            sender=request.sender,
        )
        if request.frames:
            return frames.frame_call(model, request.frames, wish, id=request.id)
        return InferCall(model, dict(request.feeds or {}), wish.parameters(), id=request.id)

    def _start(
        self,
        client: NodeClient,
        future: CallFuture[Any],
        method: str,
        message: bytes,
        read: Callable[[bytes], Any],
        deadline_s: float,
        done: Callable[[Any], None],
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        try:
            invoke = client.channel.unary_unary(
                method_path(method), request_serializer=bytes, response_deserializer=read
            )
            call = invoke.future(message, timeout=max(deadline_s, 1e-3), metadata=(*self._metadata, *headers))
        except ValueError:  # the channel is closed
            future.settle(_raiser(UnreachableError(f"{self.url}: the connection was closed")))
            return
        future._calls.append(call)
        call.add_done_callback(done)

    def _settle(self, future: CallFuture[_T], call: Any, read: Callable[[Any], _T]) -> None:
        error = self._error(call)
        future.settle(_raiser(error) if error is not None else lambda: read(call.result()))

    def _error(self, call: Any) -> EdgekitError | None:
        """None where it went well. A call that was let go of counts as unreachable; nobody reads it."""
        if call.cancelled():
            return UnreachableError(f"{self.url}: the call was let go of")
        failure = call.exception()
        if failure is None:
            return None
        error = from_grpc(failure, self.url)
        said_so = any(key == ERROR_KEY for key, _ in failure.trailing_metadata() or ())
        return UpstreamError(error.message, hint=error.hint) if said_so and type(error) is UnreachableError else error

    def _info(self, answers: Iterable[Any]) -> NodeInfo:
        plans: dict[str, str] = {}
        codecs: dict[str, str] = {}
        bundle = ""
        for answer in answers:
            for key, value in answer.config.parameters.items():
                kind, _, name = key.partition(".")
                if kind == frames.PLAN:
                    plans[name] = value.string_value
                elif kind == frames.CODEC:
                    codecs[name] = value.string_value
                elif key == frames.BUNDLE:
                    bundle = value.string_value
        return NodeInfo(self.url, bundle, plans, codecs)

    def _fresh_client(self) -> NodeClient:
        with self._lock:
            if self._is_stale and not self._is_closed:
                self._client.close()
                self._client, self._is_stale = NodeClient(self.url, self._options), False
            return self._client


def _parameter(answer: Any, key: str) -> str:
    """ "" where it is missing."""
    return str(answer.config.parameters[key].string_value) if key in answer.config.parameters else ""


def _older_versions(answer: Any) -> list[str]:
    """Those that are served beside the one that answered, the newest first."""
    return [version for version in _parameter(answer, frames.VERSIONS).split(",") if version][-2::-1]


def _reply(data: bytes, sent_bytes: int) -> Reply:
    answer = answer_from_message(ModelInferResponse.FromString(data))
    served = frames.Served.of(answer)
    return Reply(
        outputs=dict(answer.tensors),
        id=answer.id,
        tier=served.tiers[-1] if served.tiers else "",
        compute_ms=served.compute_ms,
        queue_ms=served.queue_ms,
        forward_ms=served.forward_ms,
        size_bytes=len(data),
        sent_bytes=sent_bytes,
        degraded=served.degraded,
    )


def _raiser(error: EdgekitError) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def _none(data: bytes) -> None:
    """A ping's answer says nothing but that it came."""


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)

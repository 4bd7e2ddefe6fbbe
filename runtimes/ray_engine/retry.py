"""What Ray's HTTP proxy lacks: a request whose replica was lost goes to another; errors bear the protocol's form.

Ray's router sends again what a replica refused or could not be handed; what a replica had begun when it died ends in a
plain 500. An inference has no effect but its answer, so here it is sent again, whole. The proxy's process loads this
by `PROXY_SETTINGS`; every replica marks its answers (`Marked`), and whatever comes without the mark is Ray's own.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from edgekit.errors import DeadlineError, EdgekitError, InputError, MismatchError, OverloadedError, UnreachableError
from edgekit.runtimes.protocol.status import ERROR_KEY, RETRY_KEY, error_kind, http_status

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MARK, RETRIES = "edgekit-replica", "edgekit-retries"
# Exchanging a model in one replica would leave the others behind.
EXCHANGE = "/v2/repository/models/"
MAX_BYTES, RETRY_S = "EDGEKIT_RAY_MAX_BYTES", "EDGEKIT_RAY_RETRY_S"
IMPORT_PATH = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"

# A request that itself kills its replica must not go through all of them.
MAX_SENDS = 3
BODY_TIMEOUT_S = 10.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 1.0

# Of a replica that is about to go, by the kind that its own answer names.
_LEAVING = ("NodeError", "UnreachableError")


def proxy_settings(max_bytes: int, retry_s: float) -> dict[str, str]:
    """The environment in which Ray's proxies load `middlewares`."""
    return {IMPORT_PATH: f"{__name__}.middlewares", MAX_BYTES: str(max_bytes), RETRY_S: f"{retry_s:g}"}


def middlewares() -> list[Middleware]:
    """Called by Ray in the process of a proxy."""
    return [Middleware(RetryLost, max_bytes=int(os.environ[MAX_BYTES]), retry_s=float(os.environ[RETRY_S]))]


class Marked:
    """An application whose answers say which replica gave them."""

    def __init__(self, app: App, replica: str) -> None:
        self._app, self._mark = app, (MARK.encode(), replica.encode())

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), self._mark]
            await send(message)

        await self._app(scope, receive, marked)


@dataclass
class Answer:
    """What came back for one sending, held until it is whole."""

    start: Message | None = None
    body: bytearray = field(default_factory=bytearray)
    is_ended: bool = False

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            self.is_ended = not message.get("more_body", False)

    @property
    def headers(self) -> dict[str, str]:
        pairs = self.start.get("headers", ()) if self.start is not None else ()
        return {bytes(key).decode("latin-1").lower(): bytes(value).decode("latin-1") for key, value in pairs}

    @property
    def status(self) -> int:
        return self.start["status"] if self.start is not None else 500

    @property
    def is_whole(self) -> bool:
        if self.start is None or not self.is_ended:
            return False
        stated = self.headers.get("content-length", "")
        return not stated.isdecimal() or int(stated) == len(self.body)

    @property
    def is_ours(self) -> bool:
        return MARK in self.headers

    @property
    def is_lost(self) -> bool:
        """No replica has answered it, and another one may."""
        if not self.is_whole:
            return True
        if self.is_ours:
            return self.status == 503 and self.headers.get(ERROR_KEY) in _LEAVING
        return self.status >= 500

    @property
    def may_have_run(self) -> bool:
        """Ray says 503 where it found no replica; otherwise one had begun."""
        return not self.is_whole or (not self.is_ours and self.status != 503)

    def error(self) -> EdgekitError:
        """What Ray's own answer means."""
        said = bytes(self.body[:200]).decode("utf-8", "replace")
        if self.status == 404:
            return MismatchError("nothing is deployed here", hint="edgekit serve --engine ray")
        if self.status == 408:
            return DeadlineError("no replica answered in Ray's time")
        if self.status == 429:
            return OverloadedError("every replica is busy and the queue before them is full", hint="try again later")
        if not self.is_whole:
            return UnreachableError("the replicas that had this request are gone", hint="send it again")
        return UnreachableError(f"no replica is there for this request: {said or self.status}", hint="try again later")


class RetryLost:
    """Around the proxy's application. `retry_s`: how long after its first loss a request may be sent again."""

    def __init__(self, app: App, max_bytes: int, retry_s: float) -> None:
        self._app, self._max_bytes, self._retry_s = app, max_bytes, retry_s

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith(EXCHANGE):
            error: EdgekitError = InputError("what runs on Ray is exchanged as a whole", hint="deploy again")
            await _answer(error, {}, scope, receive, send)
            return
        caller = _Caller(receive, self._max_bytes)
        try:
            await asyncio.wait_for(caller.read(), BODY_TIMEOUT_S)
        except asyncio.TimeoutError:
            await _refuse(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s", scope, receive, send)
            return
        except _TooLongError:
            await _refuse(413, f"the body is longer than {self._max_bytes} bytes", scope, receive, send)
            return
        answer, retries = await self._sent(scope, caller)
        if caller.is_gone:
            return
        if answer.is_ours and answer.is_whole:
            assert answer.start is not None
            if retries:
                answer.start["headers"] = [*answer.start["headers"], (RETRIES.encode(), str(retries).encode())]
            await send(answer.start)
            await send({"type": "http.response.body", "body": bytes(answer.body), "more_body": False})
            return
        error = answer.error()
        headers = {RETRIES: str(retries)}
        if isinstance(error, OverloadedError):
            headers[RETRY_KEY] = answer.headers.get(RETRY_KEY, "1")
        await _answer(error, headers, scope, receive, send)

    async def _sent(self, scope: MutableMapping[str, Any], caller: _Caller) -> tuple[Answer, int]:
        """The last answer, and how many were lost before it."""
        sends, retries, pause_s, until = 0, 0, 0.0, float("inf")
        while True:
            answer = Answer()
            # Ray changes the headers of what it is given.
            await self._app({**scope, "headers": list(scope["headers"])}, caller.replay(), answer.take)
            sends += answer.may_have_run
            until = min(until, time.monotonic() + self._retry_s)
            if not answer.is_lost or caller.is_gone or sends >= MAX_SENDS or time.monotonic() + pause_s >= until:
                return answer, retries
            retries += 1
            await asyncio.sleep(pause_s)
            pause_s = min(LAST_PAUSE_S, 2 * pause_s or FIRST_PAUSE_S)


async def _answer(
    error: EdgekitError, headers: dict[str, str], scope: MutableMapping[str, Any], receive: Receive, send: Send
) -> None:
    headers = {ERROR_KEY: error_kind(error), **headers}
    await JSONResponse({"error": error.message}, http_status(error), headers)(scope, receive, send)


class _TooLongError(Exception):
    pass


class _Caller:
    """The request's body, read once and given again to each sending; `is_gone` when its sender hung up."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._max_bytes = receive, max_bytes
        self._body = bytearray()
        self.is_gone = False

    async def read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.is_gone = True
                return
            self._body += message.get("body", b"")
            if len(self._body) > self._max_bytes:
                raise _TooLongError
            if not message.get("more_body", False):
                return

    def replay(self) -> Receive:
        body: bytes | None = bytes(self._body)

        async def receive() -> Message:
            nonlocal body
            if body is not None:
                whole, body = body, None
                return {"type": "http.request", "body": whole, "more_body": False}
            message = await self._receive()
            self.is_gone |= message["type"] == "http.disconnect"
            return message

        return receive


async def _refuse(status: int, message: str, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    await JSONResponse({"error": message}, status, {"Connection": "close"})(scope, receive, send)

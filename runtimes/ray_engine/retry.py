"""What Ray's HTTP proxy lacks: a request whose replica was lost goes to another; errors bear the protocol's form.

Ray's router sends again what a replica refused or could not be handed; what a replica had begun when it died ends in a
plain 500. An inference has no effect but its answer, so here it is sent again, whole. The proxy's process loads this;
every replica marks its answers (`answer.Marked`), and whatever comes without the mark is Ray's own.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass

from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from edgekit.errors import EdgekitError, InputError, OverloadedError
from edgekit.runtimes.protocol.frames import DEADLINE
from edgekit.runtimes.protocol.http_body import JSON_LENGTH
from edgekit.runtimes.protocol.status import ERROR_KEY, RETRY_KEY, error_kind, http_status
from edgekit.runtimes.ray_engine.answer import Answer, App, Message, Receive, Scope, Send
from edgekit.runtimes.ray_engine.patience import Patience

RETRIES = "edgekit-retries"
# Exchanging a model in one replica would leave the others behind.
EXCHANGE = "/v2/repository/models/"
SETTINGS = "EDGEKIT_RAY_PROXY"
IMPORT_PATH = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"

TIMEOUT = b"x-request-timeout-seconds"


@dataclass(frozen=True)
class ProxyOptions:
    """As the node's options have them; `retry_s`: how long after its first loss a request may be sent again."""

    max_bytes: int = 16 << 20
    body_timeout_s: float = 10.0
    retry_s: float = 20.0

    def environment(self) -> dict[str, str]:
        """In which Ray's proxies load `middlewares` with these options."""
        return {IMPORT_PATH: f"{__name__}.middlewares", SETTINGS: json.dumps(asdict(self))}


def middlewares() -> list[Middleware]:
    """Called by Ray in the process of a proxy."""
    return [Middleware(RetryLost, options=ProxyOptions(**json.loads(os.environ[SETTINGS])))]


class RetryLost:
    """Around the proxy's application. A request with a deadline is answered by then, wherever it waits."""

    def __init__(self, app: App, options: ProxyOptions) -> None:
        self._app, self._options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith(EXCHANGE):
            error: EdgekitError = InputError("what runs on Ray is exchanged as a whole", hint="deploy again")
            await _answer(error, {}, scope, receive, send)
            return
        options, arrived = self._options, time.monotonic()
        caller = _Caller(receive, options.max_bytes)
        try:
            await asyncio.wait_for(caller.read(), options.body_timeout_s)
        except asyncio.TimeoutError:
            await _refuse(408, f"the body did not arrive within {options.body_timeout_s:g} s", scope, receive, send)
            return
        except _TooLongError:
            await _refuse(413, f"the body is longer than {options.max_bytes} bytes", scope, receive, send)
            return
        deadline_ms = deadline_of(caller.body, scope)
        ends = float("inf") if deadline_ms is None else arrived + deadline_ms / 1e3
        answer, retries = await self._sent(scope, caller, ends)
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

    async def _sent(self, scope: Scope, caller: _Caller, ends: float) -> tuple[Answer, int]:
        """The last answer, and how many were lost before it."""
        patience = Patience(self._options.retry_s, ends)
        while True:
            answer = Answer()
            # Ray changes the headers of what it is given.
            headers = list(scope["headers"])
            left_s = patience.left_s()
            if left_s is not None:
                headers.append((TIMEOUT, f"{left_s:.3f}".encode()))
            await self._app({**scope, "headers": headers}, caller.replay(), answer.take)
            if not answer.is_lost or caller.is_gone:
                return answer, patience.retries
            pause_s = patience.pause_s(answer.may_have_run)
            if pause_s is None:
                return answer, patience.retries
            await asyncio.sleep(pause_s)


def deadline_of(body: bytes | bytearray, scope: Scope) -> float | None:
    """Milliseconds that the request gives itself; None where it does not say, or not as the protocol has it."""
    if DEADLINE.encode() not in body:
        return None
    length = next((value for name, value in scope["headers"] if name.lower() == JSON_LENGTH.encode()), b"")
    head = body[: int(length)] if length.isdigit() else body
    try:
        found = json.loads(bytes(head))["parameters"][DEADLINE]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return float(found) if isinstance(found, int | float) and found > 0 else None


async def _answer(error: EdgekitError, headers: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
    headers = {ERROR_KEY: error_kind(error), **headers}
    await JSONResponse({"error": error.message}, http_status(error), headers)(scope, receive, send)


class _TooLongError(Exception):
    pass


class _Caller:
    """The request's body, read once and given again to each sending; `is_gone` when its sender hung up."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._max_bytes = receive, max_bytes
        self.body = bytearray()
        self.is_gone = False

    async def read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.is_gone = True
                return
            self.body += message.get("body", b"")
            if len(self.body) > self._max_bytes:
                raise _TooLongError
            if not message.get("more_body", False):
                return

    def replay(self) -> Receive:
        body: bytes | None = bytes(self.body)

        async def receive() -> Message:
            nonlocal body
            if body is not None:
                whole, body = body, None
                return {"type": "http.request", "body": whole, "more_body": False}
            message = await self._receive()
            self.is_gone |= message["type"] == "http.disconnect"
            return message

        return receive


async def _refuse(status: int, message: str, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"error": message}, status, {"Connection": "close"})(scope, receive, send)

"""What no route should have to think of: how long a body may be and may take, and headers that every answer bears.

A body is taken whole, within its bounds, before a route sees it, so that one that is too long is refused as such
wherever it goes. Files of bundles are streamed instead; each piece of one must come in time. Agents' syncs pass by here
and have bounds of their own (`door`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from edgekit.fleet.server.problems import answer

MAX_BODY_BYTES = 2 << 20
BODY_S, PIECE_S = 20.0, 60.0
SAFE = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"x-frame-options": b"DENY",
}

Message = dict[str, Any]


class _RefusedError(Exception):
    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error


class Limits:
    """Around an ASGI application. `is_streamed`: (method, path) -> whether the body is a file."""

    def __init__(
        self,
        app: Any,
        is_streamed: Callable[[str, str], bool],
        most_bytes: int = MAX_BODY_BYTES,
        body_s: float = BODY_S,
        piece_s: float = PIECE_S,
    ) -> None:
        self._app, self._is_streamed = app, is_streamed
        self._most_bytes, self._body_s, self._piece_s = most_bytes, body_s, piece_s

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                held = {name.lower() for name, _ in headers}
                headers += [(name, value) for name, value in SAFE.items() if name not in held]
                message = {**message, "headers": headers}
            await send(message)

        try:
            receive = (
                self._pieces(receive)
                if self._is_streamed(scope["method"], scope["path"])
                else (await self._whole(scope, receive))
            )
        except _RefusedError as error:
            refusal = answer(error.status, error.error, "see /openapi.json", "UsageError")
            refusal.headers["connection"] = "close"  # what is left of the body is not read
            await refusal(scope, receive, send_safe)
            return
        await self._app(scope, receive, send_safe)

    async def _whole(self, scope: Message, receive: Any) -> Any:
        """A `receive` that gives the body in one piece. Raises _RefusedError."""
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0]) > self._most_bytes:
            raise _RefusedError(413, f"a body of {int(lengths[0])} bytes, allowed {self._most_bytes}")
        try:
            body = await asyncio.wait_for(self._read(receive), self._body_s)
        except asyncio.TimeoutError:
            raise _RefusedError(408, f"the body did not come within {self._body_s:g} s") from None
        waiting = [{"type": "http.request", "body": body, "more_body": False}] if body is not None else []

        async def replay() -> Message:
            if waiting:
                return waiting.pop()
            message: Message = await receive()
            return message

        return replay

    async def _read(self, receive: Any) -> bytes | None:
        """None where the caller has gone."""
        chunks, total = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            chunks.append(message.get("body", b""))
            total += len(chunks[-1])
            if total > self._most_bytes:
                raise _RefusedError(413, f"a body of more than {self._most_bytes} bytes")
            if not message.get("more_body", False):
                return b"".join(chunks)

    def _pieces(self, receive: Any) -> Any:
        """A `receive` that gives up on a caller who stands still in the middle of a body."""
        ended = False

        async def in_time() -> Message:
            nonlocal ended
            if ended:
                message: Message = await receive()
                return message
            try:
                message = await asyncio.wait_for(receive(), self._piece_s)
            except asyncio.TimeoutError:
                ended = True
                return {"type": "http.disconnect"}
            ended = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return in_time

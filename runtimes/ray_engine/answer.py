"""What comes back through Ray's proxy: a replica's own answer, which bears its mark, or Ray's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.errors import DeadlineError, EdgekitError, MismatchError, OverloadedError, UnreachableError
from edgekit.runtimes.protocol.status import ERROR_KEY

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MARK = "edgekit-replica"

# Of a replica that is about to go, by the kind that its own answer names.
LEAVING = ("NodeError", "UnreachableError")


class Marked:
    """An application whose answers say which replica gave them."""

    def __init__(self, app: App, replica: str) -> None:
        self._app, self._mark = app, (MARK.encode(), replica.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            return self.status == 503 and self.headers.get(ERROR_KEY) in LEAVING
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

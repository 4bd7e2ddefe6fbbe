"""How long the head of a request may be and may take: uvicorn bounds neither, and holds what has come of one in memory.

Bodies have bounds of their own (`limits`, `agents`). A connection on which nothing is asked ends too; one that waits
for the next question is ended by uvicorn's keep-alive.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 << 10
HEAD_S = 30.0


class BoundedHeads(HttpToolsProtocol):  # type: ignore[misc]
    """`_held`: bytes since the parser made something of them; heads, and what else it holds back, such as trailers."""

    _held, _in_head = 0, False
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self._held += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            self._end()
        elif self._held > HEAD_BYTES:
            self.send_400_response("The head of the request is too long.")
            self._end()
        elif self._in_head:
            self._begin()
        else:
            self._end()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._held = False, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._held = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._held = 0
        super().on_message_complete()

    def _begin(self) -> None:
        """Most heads come at once, and cost no timer."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_S, self.transport.abort)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

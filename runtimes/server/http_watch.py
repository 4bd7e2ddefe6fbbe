"""HTTP/1.1 connections that are watched: who is slow to say what he wants is cut off."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_TIMEOUT_S = 10.0


class WatchedProtocol(H11Protocol):  # type: ignore[misc]  # uvicorn is followed nowhere else
    """uvicorn's own has no limit on the time that the headers take; bodies are bounded where they are read."""

    timeout_s = HEADERS_TIMEOUT_S
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._begin_watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._end_watch()
        elif self._watch is None:
            self._begin_watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_watch()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """The protocol's error body instead of plain text."""
        self._end_watch()
        if self.conn.our_state is not h11.IDLE and self.conn.our_state is not h11.SEND_RESPONSE:
            self.transport.close()
            return
        body = json.dumps({"error": msg}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        events: list[Any] = [
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def _begin_watch(self) -> None:
        self._watch = self.loop.call_later(self.timeout_s, self._cut)

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _cut(self) -> None:
        self._watch = None
        if not self.transport.is_closing():
            self.transport.abort()

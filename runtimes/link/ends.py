"""The two things between sockets and a bucket: an End, which is one side of a connection, and a DelayLine."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

INBOX_BYTES = 1 << 17


class End(asyncio.Protocol):
    """One socket. What comes in waits with the time at which it came; past `INBOX_BYTES` the peer has to wait too."""

    def __init__(self, on_open: Callable[[End], None] | None = None) -> None:
        self._on_open = on_open
        self._inbox: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._eof = False
        self._failure: Exception | None = None
        self._readable, self._writable = asyncio.Event(), asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._loop = asyncio.get_running_loop()
        self.transport = transport
        transport.set_write_buffer_limits(high=INBOX_BYTES)
        with suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:
        self._inbox.append((self._loop.time(), data))
        self._held_bytes += len(data)
        if self._held_bytes >= INBOX_BYTES:
            self.transport.pause_reading()
        self._readable.set()

    def eof_received(self) -> bool:
        self._eof = True
        self._readable.set()
        return True  # the other direction may go on

    def connection_lost(self, error: Exception | None) -> None:
        self._eof = True
        self._failure = error or ConnectionResetError("the connection is gone")
        self._readable.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def take(self, limit: int) -> tuple[bytes, float, bool]:
        """(up to `limit` bytes, when the last of them came, whether none follows yet); no bytes at the end.

        Raises ConnectionError where the connection broke.
        """
        while not self._inbox:
            if self._failure is not None:
                raise ConnectionResetError("the connection broke") from self._failure
            if self._eof:
                return b"", self._loop.time(), True
            self._readable.clear()
            await self._readable.wait()
        taken: list[bytes] = []
        came_at = 0.0
        while self._inbox and limit > 0:
            came_at, data = self._inbox.popleft()
            if len(data) > limit:
                self._inbox.appendleft((came_at, data[limit:]))
                data = data[:limit]
            limit -= len(data)
            taken.append(data)
        whole = b"".join(taken)
        self._held_bytes -= len(whole)
        if self._held_bytes < INBOX_BYTES // 2 and not self._eof:
            self.transport.resume_reading()
        return whole, came_at, not self._inbox

    async def give(self, data: bytes) -> None:
        """Waits while the peer does not read. Raises ConnectionError where the connection broke."""
        if self._failure is not None:
            raise ConnectionResetError("the connection broke") from self._failure
        self.transport.write(data)
        await self._writable.wait()

    def finish(self) -> None:
        """No more bytes go this way."""
        if self._failure is None and not self.transport.is_closing():
            with suppress(OSError):
                self.transport.write_eof()


class DelayLine:
    """Bytes on their way with the time at which each slice is due; `put` waits while `limit_bytes` are under way."""

    def __init__(self) -> None:
        self._slices: deque[tuple[bytes, float]] = deque()
        self._held_bytes = 0
        self._changed = asyncio.Event()

    async def put(self, data: bytes, due: float, limit_bytes: int) -> None:
        while self._held_bytes and self._held_bytes + len(data) > limit_bytes:
            self._changed.clear()
            await self._changed.wait()
        self._slices.append((data, due))
        self._held_bytes += len(data)
        self._changed.set()

    async def get(self) -> tuple[bytes, float]:
        while not self._slices:
            self._changed.clear()
            await self._changed.wait()
        return self._slices.popleft()

    def arrived(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes
        self._changed.set()

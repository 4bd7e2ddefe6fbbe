"""A link without hardware: a TCP proxy that lets bytes through as slowly, as late and as unevenly as a real one.

Both directions have a token bucket of their own, which all connections share, and half of the round-trip time. What
TCP hides is hidden here too: bytes come in order and none is missing; a lost packet holds up those behind it.
"""

from __future__ import annotations

import asyncio
import errno
import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Literal, TypeVar

from edgekit.errors import NodeError, UsageError
from edgekit.planning.link import Link
from edgekit.planning.traces import Conditions, Trace
from edgekit.runtimes.link.bucket import Bucket, Weather
from edgekit.runtimes.link.ends import DelayLine, End

Address = tuple[str, int]
Direction = Literal["up", "down"]
MAX_CONNECTIONS = 256
CONNECT_TIMEOUT_S = 5.0
OUTAGE_CHECK_S = 0.02
# select() sleeps to the microsecond where epoll rounds up to milliseconds, but it knows no descriptor from here on.
SELECT_LIMIT = 1024
_T = TypeVar("_T")


@dataclass(frozen=True)
class LinkState:
    """What a live view shows. Bytes are those that have left each bucket."""

    elapsed_s: float
    conditions: Conditions
    is_up: bool
    up_bytes: int
    down_bytes: int
    connections: int
    refused: int


def parse_address(text: str, what: str = "address") -> Address:
    """`127.0.0.1:9000` or `[::1]:9000`. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(f"{what} {text!r} is no HOST:PORT", hint="like 127.0.0.1:9000")
    return host, int(port)


class LinkEmulator:
    """`with LinkEmulator("127.0.0.1:0", "127.0.0.1:8102", link) as emulator:` serves at `emulator.port` until the end.

    The trace begins on entering. An outage longer than `outage_limit_s` breaks the connections, as a network does
    that has forgotten them. `handshake`: a new connection costs a round trip, as it would. Everything that is drawn
    comes from `seed`. Raises NodeError where it cannot listen.
    """

    def __init__(
        self,
        listen: str | Address,
        to: str | Address,
        link: Link | Conditions | Trace,
        *,
        seed: int = 0,
        outage_limit_s: float | None = None,
        handshake: bool = True,
    ) -> None:
        self._listen = parse_address(listen) if isinstance(listen, str) else listen
        self._to = parse_address(to) if isinstance(to, str) else to
        self._trace = _as_trace(link)
        self._seed, self._outage_limit_s, self._handshake = seed, outage_limit_s, handshake
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self.host, self.port = self._listen

    # Used from outside

    def __enter__(self) -> LinkEmulator:
        self._socket = _listening(self._listen)
        self.host, self.port = self._socket.getsockname()[:2]
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), name="edgekit-link", daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every connection and the thread; again is harmless."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        with suppress(RuntimeError):  # the loop has closed meanwhile
            loop.call_soon_threadsafe(self._stop.set)
        thread.join()
        self._loop = self._thread = None

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def set(self, link: Link | Conditions | Trace) -> None:
        """From now on the link is this one (a trace begins now); what is on its way keeps its delay."""
        trace = _as_trace(link)
        self._call(lambda: self._change(trace=trace))

    def cut(self, *, close: bool = False) -> None:
        """Nothing moves until `restore`. With `close` connections break at once, and new ones too."""
        self._call(lambda: self._change(cut=True, close=close))

    def restore(self) -> None:
        self._call(lambda: self._change(cut=False))

    def flip(self, direction: Direction = "up", count: int = 1) -> None:
        """Damages one bit of one byte in each of the next `count` slices that go in `direction`."""
        self._call(lambda: self._flips.update({direction: self._flips[direction] + count}))

    def state(self) -> LinkState:
        return self._call(self._state)

    def _call(self, action: Callable[[], _T]) -> _T:
        """Runs `action` in the emulator's thread; its result. Raises NodeError once it is closed."""
        loop = self._loop
        if loop is None or loop.is_closed():
            raise NodeError("the link emulator is not running", hint="use it within `with LinkEmulator(...)`")

        async def act() -> _T:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), loop).result()

    # In the emulator's own thread

    def _serve(self, started: threading.Event) -> None:
        assert self._socket is not None
        in_reach = self._socket.fileno() < SELECT_LIMIT // 4
        loop = asyncio.SelectorEventLoop(selectors.SelectSelector() if in_reach else None)
        self._loop = loop
        try:
            loop.run_until_complete(self._main(started))
        finally:
            loop.close()

    async def _main(self, started: threading.Event) -> None:
        assert self._socket is not None
        self._stop = asyncio.Event()
        self._closing = False
        self._flips: dict[str, int] = {"up": 0, "down": 0}
        self._refused = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._weather = Weather(self._trace, self._clock())
        self._began = self._clock()
        random = Random(self._seed)
        self._buckets = {way: Bucket(self._weather, Random(random.random())) for way in self._flips}
        server = await asyncio.get_running_loop().create_server(lambda: End(self._accept), sock=self._socket)
        watch = asyncio.create_task(self._break_in_long_outages())
        started.set()
        await self._stop.wait()
        server.close()
        watch.cancel()
        self._break_all()
        await asyncio.gather(watch, *self._connections, return_exceptions=True)

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()

    def _change(self, *, trace: Trace | None = None, cut: bool | None = None, close: bool = False) -> None:
        if cut is not None:
            self._closing = cut and close
        if close:
            self._break_all()
        self._weather.change(trace=trace, began=self._clock(), cut=cut)

    def _state(self) -> LinkState:
        now = self._clock()
        return LinkState(
            elapsed_s=now - self._began,
            conditions=self._weather.at(now),
            is_up=self._weather.is_up(now),
            up_bytes=self._buckets["up"].carried_bytes,
            down_bytes=self._buckets["down"].carried_bytes,
            connections=len(self._connections),
            refused=self._refused,
        )

    def _break_all(self) -> None:
        for task in self._connections:
            task.cancel()

    async def _break_in_long_outages(self) -> None:
        down_since: float | None = None
        while self._outage_limit_s is not None:
            now = self._clock()
            down_since = None if self._weather.is_up(now) else now if down_since is None else down_since
            if down_since is not None and now - down_since >= self._outage_limit_s:
                self._break_all()
            await self._weather.wait_until(now + OUTAGE_CHECK_S)

    def _accept(self, near: End) -> None:
        if self._closing or len(self._connections) >= MAX_CONNECTIONS:
            self._refused += 1
            near.transport.abort()
            return
        task = asyncio.create_task(self._connect(near))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connect(self, near: End) -> None:
        ends = [near]
        try:
            if self._handshake:
                await self._round_trip()
            far = End()
            opening = asyncio.get_running_loop().create_connection(lambda: far, *self._to)
            try:
                await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
            except (OSError, asyncio.TimeoutError):
                self._refused += 1
                return
            ends.append(far)
            await self._carry(near, far)
            for end in ends:
                end.transport.close()
        except ConnectionError:
            pass  # one side is gone: the other learns it below
        finally:
            for end in ends:
                if not end.transport.is_closing():
                    end.transport.abort()

    async def _carry(self, near: End, far: End) -> None:
        """Both directions until both have ended. Raises ConnectionError as soon as either side breaks."""
        tasks, opened_at = [], self._clock()
        for way, source, target in (("up", near, far), ("down", far, near)):
            line = DelayLine()
            tasks.append(asyncio.create_task(self._send(way, source, line, opened_at)))
            tasks.append(asyncio.create_task(self._deliver(line, target)))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _round_trip(self) -> None:
        """A handshake's; it waits while the link is down."""
        for bucket in self._buckets.values():
            left_at = await bucket.depart(0, self._clock())
            await self._weather.wait_until_up(bucket.arrival(left_at, 0, is_last=True))

    async def _send(self, way: str, source: End, line: DelayLine, opened_at: float) -> None:
        """One direction of one connection: take turns at the bucket, and hand over to the delay line."""
        bucket = self._buckets[way]
        while True:
            data, came_at, is_last = await source.take(bucket.slice_bytes(self._clock()))
            left_at = await bucket.depart(len(data), max(came_at, opened_at))
            if data and self._flips[way] > 0:
                self._flips[way] -= 1
                data = bytes([data[0] ^ 0x10]) + data[1:]
            await line.put(data, bucket.arrival(left_at, len(data), is_last), bucket.in_flight_limit(left_at))
            if not data:
                return

    async def _deliver(self, line: DelayLine, target: End) -> None:
        """Whatever is due, in order; an empty slice is the end of the stream."""
        due = 0.0
        while True:
            data, arrives = await line.get()
            due = await self._weather.wait_until_up(max(due, arrives))
            if not data:
                target.finish()
                return
            await target.give(data)
            line.arrived(len(data))


def _as_trace(link: Link | Conditions | Trace) -> Trace:
    if isinstance(link, Trace):
        return link
    return Trace.constant(link if isinstance(link, Conditions) else Conditions.of(link))


def _listening(address: Address) -> socket.socket:
    host, port = address
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise NodeError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(MAX_CONNECTIONS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        hint = "port 0 takes a free one" if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        raise NodeError(f"cannot listen on {host}:{port}: {error.strerror or error}", hint=hint) from error
    return listener

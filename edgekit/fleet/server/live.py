"""Live updates: a page's address asked for as text/event-stream answers with its parts, whenever they are others.

The parts are blocks of the page's own template, so that what comes later looks like what was there at first. Streams
of the same address share one rendering. They are bounded in number, in age and in bytes a second, end with the sign-in,
and end at once when the service stops.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field

from edgekit.errors import EdgekitError, OverloadedError
from edgekit.fleet.web.drawing import mark_of

EVERY_S = 2.0
LASTS_S = 1800.0  # then the browser opens it again
QUIET_S = 15.0  # a comment goes out after so long without an event, so that a dead connection is noticed
MOST_STREAMS, MOST_EACH = 256, 12
BYTES_PER_S = 8_192  # a large part is sent so much the less often

Parts = dict[str, str]
Draw = Callable[[], Awaitable[Parts]]
Still = Callable[[], Awaitable[bool]]


@dataclass
class _Shared:
    """What the streams of an address have drawn last."""

    streams: int = 0
    parts: Parts = field(default_factory=dict)
    drawn_at: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class _Sent:
    """What one browser has: the mark of each part, and when it may be sent again."""

    marks: dict[str, str] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)

    def event(self, parts: Parts, now: float) -> str:
        """Of the parts that are others now; "" where none is."""
        fresh = {}
        for name, text in parts.items():
            mark = mark_of(text)
            if self.marks.get(name) != mark and now >= self.due.get(name, 0.0):
                fresh[name] = (mark, text)
                self.marks[name], self.due[name] = mark, now + len(text) / BYTES_PER_S
        return f"event: parts\ndata: {json.dumps(fresh)}\n\n" if fresh else ""


class Live:
    """Of one event loop. `every_s`: between two looks."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self.every_s = every_s
        self._shared: dict[str, _Shared] = {}
        self._streams: Counter[str] = Counter()
        self._stopping = asyncio.Event()

    @property
    def streams(self) -> int:
        return self._streams.total()

    def stop(self) -> None:
        """Ends every stream. From the event loop's thread."""
        self._stopping.set()

    def admit(self, who: str) -> None:
        """Raises OverloadedError where there are too many streams, of all or of one sign-in."""
        if self.streams >= MOST_STREAMS or self._streams[who] >= MOST_EACH:
            raise OverloadedError("too many pages are open for live updates", hint="close some, or reload by hand")

    async def stream(
        self, who: str, address: str, draw: Draw, still: Still, marks: Collection[str] = ()
    ) -> AsyncIterator[str]:
        """Server-sent events. `still`: whether the sign-in counts, asked at each look. `marks`: of the parts that the
        browser has already."""
        shared = self._shared.setdefault(address, _Shared())
        shared.streams += 1
        self._streams[who] += 1
        try:
            async for event in self._events(shared, draw, still, marks):
                yield event
        finally:
            shared.streams -= 1
            if shared.streams == 0:
                self._shared.pop(address, None)
            self._streams[who] -= 1
            self._streams += Counter()  # without those that are at none

    async def _events(self, shared: _Shared, draw: Draw, still: Still, marks: Collection[str]) -> AsyncIterator[str]:
        sent: _Sent | None = None
        began = said_at = time.monotonic()
        yield "retry: 3000\n\n"
        while not self._stopping.is_set() and time.monotonic() - began < LASTS_S:
            try:
                if not await still():
                    yield "event: over\ndata: signed out\n\n"
                    return
                parts = await self._drawn(shared, draw)
            except EdgekitError:
                return  # what it shows is gone, or the database is; the browser asks again and is told
            if sent is None:
                held = {name: mark_of(text) for name, text in parts.items()}
                sent = _Sent({name: mark for name, mark in held.items() if mark in marks})
            now = time.monotonic()
            event = sent.event(parts, now)
            if event or now - said_at > QUIET_S:
                yield event or ": still here\n\n"
                said_at = now
            await self._pause()

    async def _drawn(self, shared: _Shared, draw: Draw) -> Parts:
        async with shared.lock:
            if time.monotonic() - shared.drawn_at >= self.every_s / 2:
                shared.parts = await draw()
                shared.drawn_at = time.monotonic()
            return shared.parts

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), self.every_s)
        except asyncio.TimeoutError:
            return

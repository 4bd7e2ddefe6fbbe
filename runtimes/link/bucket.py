"""A Bucket: one direction of a link, shared by every connection that crosses it. No sockets here."""

from __future__ import annotations

import asyncio
import math
from random import Random

from edgekit.planning.traces import BYTES_PER_MBIT, Conditions, Trace

PACKET_BYTES = 1448
SLICE_S = 0.001
MIN_SLICE, MAX_SLICE = PACKET_BYTES, 1 << 16
MIN_STALL_S = 0.01


class Weather:
    """What both directions of a link share: the trace with the moment at which it began, and whether it is cut.

    Times are those of the event loop's clock.
    """

    def __init__(self, trace: Trace, began: float) -> None:
        self.trace, self.began, self.is_cut = trace, began, False
        self._waiting: set[asyncio.Future[bool]] = set()

    def change(self, *, trace: Trace | None = None, began: float = 0.0, cut: bool | None = None) -> None:
        """Wakes everybody whose wait was worked out before."""
        if trace is not None:
            self.trace, self.began = trace, began
        if cut is not None:
            self.is_cut = cut
        for future in self._waiting:
            if not future.done():
                future.set_result(True)

    async def wait_until(self, deadline: float) -> bool:
        """False at `deadline` (it may be infinite), True as soon as anything changes before it."""
        loop = asyncio.get_running_loop()
        if deadline <= loop.time():
            return False
        future: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_at(deadline, _expire, future) if math.isfinite(deadline) else None
        self._waiting.add(future)
        try:
            return await future
        finally:
            self._waiting.discard(future)
            if timer is not None:
                timer.cancel()

    def at(self, now: float) -> Conditions:
        return self.trace.at(now - self.began)

    def is_up(self, now: float) -> bool:
        return not self.is_cut and self.at(now).up

    async def wait_until_up(self, due: float) -> float:
        """Waits for `due`, and on until the link is up; when that was."""
        loop = asyncio.get_running_loop()
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        while not self.is_up(due):
            back = math.inf if self.is_cut else self.began + self.trace.next_up(due - self.began)
            due = loop.time() if await self.wait_until(back) else back
        return due


def _expire(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)


class Bucket:
    """Lets bytes leave at the rate of the link, first come, first served.

    Its own clock (`_free_at`) is exact where the timers are late: no byte leaves before the link could have carried
    it, and lateness does not add up.
    """

    def __init__(self, weather: Weather, random: Random) -> None:
        self._weather, self._random = weather, random
        self._turn = asyncio.Lock()
        self._free_at = 0.0
        self.carried_bytes = 0

    def slice_bytes(self, now: float) -> int:
        """So much of a stream takes its turn at once: a millisecond's worth, within reason."""
        share = int(self._weather.at(now).bandwidth_mbps * BYTES_PER_MBIT * SLICE_S)
        return max(MIN_SLICE, min(MAX_SLICE, share))

    async def depart(self, size_bytes: int, came_at: float) -> float:
        """Waits until the last of `size_bytes`, which were there at `came_at`, has left; when that was."""
        loop, weather = asyncio.get_running_loop(), self._weather
        async with self._turn:
            start, left = max(came_at, self._free_at), float(size_bytes)
            while True:
                trace, began = weather.trace, weather.began
                end = math.inf if weather.is_cut else began + trace.transfer_end(start - began, left)
                was_cut = weather.is_cut
                if not await weather.wait_until(end):
                    break
                now = max(start, min(loop.time(), end))
                if not was_cut:
                    left = max(0.0, left - trace.capacity_bytes(start - began, now - began))
                start = now
            self._free_at = end
            self.carried_bytes += size_bytes
            return end

    def arrival(self, left_at: float, size_bytes: int, is_last: bool) -> float:
        """When bytes that left at `left_at` come out: half a round trip later, give or take the jitter; a lost packet
        is there one round trip later still, two where none follows that would give the loss away."""
        then = self._weather.at(left_at)
        delay_s = then.rtt_ms / 2000
        if then.jitter_ms:
            delay_s = max(0.0, delay_s + self._random.uniform(-then.jitter_ms, then.jitter_ms) / 1000)
        if then.loss:
            packets = math.ceil(size_bytes / PACKET_BYTES)
            if self._random.random() < 1 - (1 - then.loss) ** packets:
                delay_s += max(MIN_STALL_S, then.rtt_ms / 1000) * (1 + is_last)
        return left_at + delay_s

    def in_flight_limit(self, now: float) -> int:
        """Bytes that one connection may have on the way: what fills the link twice, and a buffer beside it."""
        then = self._weather.at(now)
        return min(1 << 23, (1 << 18) + int(2 * then.bandwidth_mbps * BYTES_PER_MBIT * then.rtt_ms / 1000))

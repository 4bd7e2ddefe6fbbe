"""Agents that wait for new orders, and what wakes them."""

from __future__ import annotations

import asyncio
import contextlib


class Waiters:
    """One event loop; `wake` may be called from any thread. A waiting agent costs a future and a timer."""

    def __init__(self) -> None:
        self._futures: dict[str, asyncio.Future[bool]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._futures)

    def wake(self, devices: tuple[str, ...]) -> None:
        if self._loop is not None and devices:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._set, devices)

    def wake_all(self) -> None:
        """In the loop: when it is about to end, so that nobody holds it up."""
        self._set(tuple(self._futures))

    def _set(self, devices: tuple[str, ...]) -> None:
        for device in devices:
            self._end(device, True)

    def _end(self, device: str, woken: bool) -> None:
        future = self._futures.pop(device, None)
        if future is not None and not future.done():
            future.set_result(woken)

    def expect(self, device: str) -> asyncio.Future[bool]:
        """Call it before the orders are read, so that none is missed between. Another one that waits as the same device
        is answered at once."""
        self._loop = asyncio.get_running_loop()
        self._end(device, True)
        future = self._futures[device] = self._loop.create_future()
        return future

    async def wait(self, device: str, future: asyncio.Future[bool], seconds: float) -> bool:
        """Whether it was woken before the time was over."""
        timer = asyncio.get_running_loop().call_later(seconds, self._expire, device, future)
        try:
            return await future
        finally:
            timer.cancel()

    def _expire(self, device: str, future: asyncio.Future[bool]) -> None:
        if not future.done():
            future.set_result(False)
        self.forget(device, future)

    def forget(self, device: str, future: asyncio.Future[bool]) -> None:
        if self._futures.get(device) is future:
            del self._futures[device]

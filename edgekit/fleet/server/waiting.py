"""Agents that wait for new orders, and what wakes them."""

from __future__ import annotations

import asyncio


class Waiters:
    """One event loop; `wake` may be called from any thread."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def wake(self, devices: tuple[str, ...]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._set, devices)

    def _set(self, devices: tuple[str, ...]) -> None:
        for device in devices:
            event = self._events.get(device)
            if event is not None:
                event.set()

    def expect(self, device: str) -> asyncio.Event:
        """Call it before the orders are read, so that none is missed between."""
        self._loop = asyncio.get_running_loop()
        event = self._events.get(device)
        if event is None or event.is_set():
            event = self._events[device] = asyncio.Event()
        return event

    def forget(self, device: str, event: asyncio.Event) -> None:
        if self._events.get(device) is event:
            del self._events[device]

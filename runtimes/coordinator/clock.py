"""Time and waiting, in one place, so that tests can put a virtual clock in their stead."""

from __future__ import annotations

import queue
import time
from typing import Any, Protocol


class Mailbox(Protocol):
    """Where the events of one request arrive, from any thread."""

    def put(self, event: Any) -> None: ...

    def get(self, until: float) -> Any | None:
        """The next event, or None once the clock shows `until`."""


class Clock(Protocol):
    """Seconds that only grow."""

    def now(self) -> float: ...

    def mailbox(self) -> Mailbox: ...


class SystemMailbox:
    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, event: Any) -> None:
        self._events.put(event)

    def get(self, until: float) -> Any | None:
        try:
            return self._events.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None


class SystemClock:
    """The machine's monotonic clock: neither NTP nor a user can set it back."""

    def now(self) -> float:
        return time.monotonic()

    def mailbox(self) -> SystemMailbox:
        return SystemMailbox()

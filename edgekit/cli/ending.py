"""How a server is asked to end: once is enough, and asking twice cuts nothing off.

`timeout`, some shells and service managers send a signal to a process and to its group, so that it comes twice.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
DOUBLED_S = 1.0  # what comes so soon after the first is the same wish


class Ending:
    """The first SIGTERM or Ctrl-C raises KeyboardInterrupt; then SIGTERM does nothing more, and Ctrl-C, a second later,
    what `hurried` was given. To be used by the main thread, which alone may set handlers."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in SIGNALS}
        self._asked_s: float | None = None
        self._hurry: Callable[[], None] | None = None

    def listen(self) -> None:
        """A signal that was ignored stays so: a shell's background job hears no Ctrl-C."""
        for number, before in self._before.items():
            if before is not signal.SIG_IGN:
                signal.signal(number, self._asked)

    def hurried(self, hurry: Callable[[], None]) -> None:
        """`hurry` is called by a signal handler, once."""
        self._hurry = hurry

    def restore(self) -> None:
        """What was set before; not where the process is about to end because it was asked to."""
        if self._asked_s is None:
            for number, before in self._before.items():
                signal.signal(number, before)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_s is None:
            self._asked_s = now
            raise KeyboardInterrupt
        if number == signal.SIGINT and self._hurry is not None and now > self._asked_s + DOUBLED_S:
            hurry, self._hurry = self._hurry, None
            hurry()

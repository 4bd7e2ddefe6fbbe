"""How often, and until when, a lost request is sent again: the same over both protocols."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

# A request that itself kills its replica must not go through all of them.
MAX_SENDS = 3
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 1.0


@dataclass
class Patience:
    """Of one request. `retry_s`: how long after its first loss it may be sent again; `ends`: its own deadline, on
    `time.monotonic`'s clock."""

    retry_s: float
    ends: float = float("inf")
    sends: int = 0
    retries: int = 0
    _pause_s: float = 0.0
    _until: float = field(default=float("inf"))

    def left_s(self) -> float | None:
        """At least a millisecond; None without a deadline."""
        return None if self.ends == float("inf") else max(0.001, self.ends - time.monotonic())

    def pause_s(self, may_have_run: bool) -> float | None:
        """It was lost: how long to rest before it is sent again, None where it is not. `may_have_run`: a replica had
        begun it."""
        now = time.monotonic()
        self.sends += may_have_run
        self._until = min(self._until, self.ends, now + self.retry_s)
        pause_s = self._pause_s
        if self.sends >= MAX_SENDS or now + pause_s >= self._until:
            return None
        self.retries += 1
        self._pause_s = min(LAST_PAUSE_S, 2 * pause_s or FIRST_PAUSE_S)
        return pause_s

"""A circuit breaker: a node that fails is left alone for a while, longer each time, then tried with one request."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from typing import Literal

from edgekit.errors import UsageError
from edgekit.runtimes.coordinator.clock import Clock

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class BreakerSettings:
    """Opens after `failures` in a row; the n-th pause lasts first_s x 2^(n-1), at most `longest_s`, of which a random
    share of up to `jitter` is taken off, so that many devices do not come back at once."""

    failures: int = 3
    first_s: float = 0.5
    longest_s: float = 30.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if self.failures < 1 or not 0 < self.first_s <= self.longest_s or not 0 <= self.jitter < 1:
            raise UsageError(f"{self}: allowed failures from 1, 0 < first_s <= longest_s, jitter from 0 to below 1")


class CircuitBreaker:
    """Closed: requests pass. Open: none pass until the pause is over. Half-open: one passes; its success closes, its
    failure opens again. Safe from any thread."""

    def __init__(
        self, clock: Clock, settings: BreakerSettings = BreakerSettings(), *, rng: random.Random | None = None
    ) -> None:
        self._clock, self._settings = clock, settings
        self._rng = rng if rng is not None else random.Random()
        self._lock = threading.Lock()
        self._failures = self._pauses = 0
        self._closed = True
        self._trial_since: float | None = None
        self._until = 0.0

    @property
    def state(self) -> State:
        with self._lock:
            if self._closed:
                return "closed"
            return "open" if self._clock.now() < self._until else "half-open"

    @property
    def retry_in_s(self) -> float:
        """Until the next trial; 0 where a request may pass now."""
        with self._lock:
            return 0.0 if self._closed else max(0.0, self._until - self._clock.now())

    def allow(self) -> bool:
        """Whether a request may pass. In the half-open state it takes the one trial: say how it went.

        A trial of which nothing was heard for as long as the longest pause counts as lost, and another may pass.
        """
        with self._lock:
            if self._closed:
                return True
            now = self._clock.now()
            if now < self._until:
                return False
            if self._trial_since is not None and now < self._trial_since + self._settings.longest_s:
                return False
            self._trial_since = now
            return True

    def success(self) -> None:
        with self._lock:
            self._closed, self._failures, self._pauses, self._trial_since = True, 0, 0, None

    def failure(self) -> None:
        with self._lock:
            self._failures += 1
            if self._closed and self._failures < self._settings.failures:
                return
            if not self._closed and self._trial_since is None and self._clock.now() < self._until:
                return  # an answer to a request from before it opened: the pause is not made longer
            pause_s = min(self._settings.longest_s, self._settings.first_s * 2.0 ** min(self._pauses, 60))
            self._pauses += 1
            self._closed, self._trial_since = False, None
            self._until = self._clock.now() + pause_s * (1 - self._settings.jitter * self._rng.random())

    def release(self) -> None:
        """The trial ended without telling anything of the node (it was called off before it was sent)."""
        with self._lock:
            self._trial_since = None

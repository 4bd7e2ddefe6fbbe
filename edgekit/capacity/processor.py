"""The cores of one server in virtual time: batches of the model, and the node's own work beside them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable

# A thread that has slept goes before those that ran, until it has caught up with them; no more than this is made good.
CREDIT_S = 0.003
NOTHING = 1e-9
LEAST_RATE = 1e-9


class Processor:
    """Own work is done one piece after another (one interpreter); up to `workers` batches run side by side, each on
    cores of its own. Where `shares_cores`, own work finds a free core only while a worker is idle: else all of them
    lose what it takes, equally, and it gets no more than one thread's fair share of the cores in the long run. Work is
    in seconds of an undisturbed core; `now` never goes back.

    Ask it at each `next_s` before anything is added later. A fluid picture of a fair scheduler: sleepers are favoured
    by a credit that they lose as they run.
    """

    def __init__(self, workers: int, shares_cores: bool) -> None:
        self._workers, self._shares_cores = workers, shares_cores
        self._now = 0.0
        self._own: deque[tuple[Hashable, float]] = deque()
        self._fair = workers / (workers + 1)
        self._credit_s = CREDIT_S
        self._batches: dict[Hashable, float] = {}

    def add_own(self, name: Hashable, seconds: float, now: float, *, behind: int | None = None) -> None:
        """Last of what waits, or `behind` so many of it. What has begun is ended first."""
        self._advance(now)
        if behind is not None and behind + 1 < len(self._own):
            self._own.insert(1 + behind, (name, seconds))
        else:
            self._own.append((name, seconds))

    def add_batch(self, name: Hashable, seconds: float, now: float) -> None:
        self._advance(now)
        self._batches[name] = seconds

    def next_s(self) -> float:
        """When something is done if nothing is added before; infinite where nothing is at work."""
        own, batch = self._rates()
        found = self._own[0][1] / own if self._own else math.inf
        if self._batches:
            found = min(found, min(self._batches.values()) / batch)
        if self._is_contended and self._credit_s > 0:
            found = min(found, self._credit_s / (1 - self._fair))
        return self._now + found

    def done(self, now: float) -> tuple[list[Hashable], list[Hashable]]:
        """(own work, batches) that is finished at `now`; it leaves."""
        self._advance(now)
        own: list[Hashable] = []
        # Late in a long simulation the clock itself is coarser than a nanosecond.
        little = max(NOTHING, 1e-15 * now)
        while self._own and self._own[0][1] <= little:
            own.append(self._own.popleft()[0])
        batches = [name for name, left in self._batches.items() if left <= little]
        for name in batches:
            del self._batches[name]
        return own, batches

    @property
    def _is_contended(self) -> bool:
        return bool(self._own) and self._shares_cores and len(self._batches) == self._workers

    def _rates(self) -> tuple[float, float]:
        """Of own work and of each batch."""
        if not self._is_contended:
            return 1.0, 1.0
        own = 1.0 if self._credit_s > 0 else self._fair
        return own, max((self._workers - own) / self._workers, LEAST_RATE)

    def _advance(self, now: float) -> None:
        passed = max(0.0, now - self._now)
        self._now = max(self._now, now)
        if not passed:
            return
        own, batch = self._rates()
        used = own if self._own else 0.0
        self._credit_s = min(CREDIT_S, self._credit_s + passed * (self._fair - used))
        if self._credit_s <= max(NOTHING, 1e-15 * now):
            self._credit_s = 0.0
        if self._own:
            name, left = self._own[0]
            spent = min(left, passed * own)
            self._own[0] = (name, left - spent)
        for name, left in self._batches.items():
            self._batches[name] = max(0.0, left - passed * batch)

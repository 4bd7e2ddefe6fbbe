"""Early exits one behind the other: who leaves where, what that costs, and a bound on the cost that always holds.

The bound is SkipDecode's (Del Corro et al., arXiv:2307.02628, section 3), for encoders: depth never rises along a batch
or along a window of requests, so that what the whole of it costs at worst is known before it begins.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from edgekit.errors import PlanError, UsageError

GRID = 20
FEW_EXITS = 3
WINDOW = 64


@dataclass(frozen=True)
class Reached:
    """`accuracy` and the mean `cost` of what was asked; `left`: the share that left at each exit, the end last."""

    accuracy: float
    cost: float
    left: tuple[float, ...]


def leaving(sure: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """`sure` [E, N] confidences -> int [N]: the first exit whose threshold is reached, E where none is."""
    stands = np.vstack([sure >= np.asarray(thresholds)[:, None], np.ones((1, sure.shape[1]), bool)])
    first: np.ndarray = stands.argmax(0)
    return first


def reach(left_at: np.ndarray, right: np.ndarray, costs: Sequence[float]) -> Reached:
    """`left_at` int [N], `right` bool [E + 1, N], `costs` up to and with each exit, and to the end."""
    shares = np.bincount(left_at, minlength=len(right)) / len(left_at)
    accuracy = right[left_at, np.arange(len(left_at))].mean()
    return Reached(float(accuracy), float(shares @ np.asarray(costs)), tuple(map(float, shares)))


def choose_thresholds(
    sure: np.ndarray,
    right: np.ndarray,
    costs: Sequence[float],
    max_drop: float,
    expected: np.ndarray | None = None,
) -> tuple[tuple[float, ...], Reached]:
    """The thresholds of least mean cost that lose at most `max_drop` points against going to the end always.

    `expected` [E + 1, N]: the probability that an answer is right, where known; its mean may fall by no more either,
    a standard error included.
    Every combination of quantiles is tried; with more than three exits all take the same quantile. Where nothing may
    leave, the thresholds lie above every confidence.
    """
    ladders = [_quantiles(row) for row in sure]
    choices = product(*ladders) if len(ladders) <= FEW_EXITS else zip(*ladders, strict=True)
    allowed = max_drop / 100 + 1e-9
    best: tuple[float, tuple[float, ...], Reached] | None = None
    for thresholds in choices:
        left_at = leaving(sure, thresholds)
        reached = reach(left_at, right, costs)
        if right[-1].mean() - reached.accuracy > allowed or _expected_drop(expected, left_at) > allowed:
            continue
        if best is None or reached.cost < best[0]:
            best = (reached.cost, thresholds, reached)
    assert best is not None, "the last quantile lets nothing leave"
    return best[1], best[2]


def _expected_drop(expected: np.ndarray | None, left_at: np.ndarray) -> float:
    """Of 1, one standard error on top."""
    if expected is None:
        return 0.0
    lost = expected[-1] - expected[left_at, np.arange(len(left_at))]
    return float(lost.mean() + lost.std() / math.sqrt(len(lost)))


def _quantiles(sure: np.ndarray) -> list[float]:
    """GRID confidences from the lowest, and one above all."""
    steps = np.quantile(sure, np.linspace(0, 1, GRID), method="lower")
    return [*map(float, steps), float(np.nextafter(steps[-1], np.inf))]


@dataclass(frozen=True)
class Schedule:
    """Of `window` requests, or of a batch, at most the share `shares[k]` goes on past exit k. Raises UsageError for
    shares that rise or leave 0 to 1."""

    shares: tuple[float, ...]
    window: int = WINDOW

    def __post_init__(self) -> None:
        if any(not 0 <= share <= 1 for share in self.shares) or list(self.shares) != sorted(self.shares, reverse=True):
            raise UsageError(
                f"shares {self.shares} of an exit schedule, allowed 1 to 0 and never more than past the exit before",
                hint="what leaves at an early exit cannot come back at a later one",
            )
        if self.window < 1:
            raise UsageError(f"a window of {self.window} requests, allowed 1 or more")

    def allowed(self, exit: int, count: int) -> int:
        """How many of `count` may go on past `exit`."""
        return math.ceil(self.shares[exit] * count - 1e-9)

    def going_on(self, sure: np.ndarray, exit: int, count: int) -> np.ndarray:
        """`sure` [M], the confidences of those that would go on of a batch of `count` -> bool [M]: the least sure ones
        do, as many as are allowed."""
        goes = np.zeros(len(sure), bool)
        goes[np.argsort(sure, kind="stable")[: self.allowed(exit, count)]] = True
        return goes

    def worst(self, costs: Sequence[float]) -> float:
        """The most that one request costs on average over a window; `costs` as in `reach`."""
        steps = np.diff(np.asarray(costs))
        allowed = [self.allowed(exit, self.window) / self.window for exit in range(len(self.shares))]
        return float(costs[0] + np.dot(allowed, steps))


class Allowance:
    """A schedule over requests that come one by one: what is left past each exit never rises within a window. Safe from
    any thread; a request keeps to the window that it `enter`ed."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._lock = threading.Lock()
        self._entered = schedule.window
        self._left: list[int] = []

    def enter(self) -> list[int]:
        """The window of one more request: how many may yet go on past each exit."""
        with self._lock:
            if self._entered >= self.schedule.window:
                self._entered = 0
                self._left = [self.schedule.allowed(k, self.schedule.window) for k in range(len(self.schedule.shares))]
            self._entered += 1
            return self._left

    def may_go_on(self, left: list[int], exit: int) -> bool:
        """Takes one of what is left past `exit`, where there is one."""
        with self._lock:
            if left[exit] < 1:
                return False
            left[exit] -= 1
            return True


def schedule_for(passing: Sequence[float], costs: Sequence[float], budget: float, window: int = WINDOW) -> Schedule:
    """The shares in proportion to `passing` (what goes on past each exit by itself) that cost `budget` at worst.

    Raises PlanError where not even the first exit fits.
    """
    if budget < costs[0]:
        raise PlanError(
            f"no exit schedule costs {budget:.4g} or less: the first exit takes {costs[0]:.4g}",
            binding="latency_ms",
            hint=f"{costs[0]:.4g} is the nearest: allow that, or put an exit before it",
        )
    low, high = 0.0, max((1 / share for share in passing if share > 0), default=0.0)
    if Schedule(_scaled(passing, high), window).worst(costs) <= budget:
        return Schedule(_scaled(passing, high), window)
    for _ in range(40):
        middle = (low + high) / 2
        if Schedule(_scaled(passing, middle), window).worst(costs) <= budget:
            low = middle
        else:
            high = middle
    return Schedule(_scaled(passing, low), window)


def _scaled(passing: Sequence[float], factor: float) -> tuple[float, ...]:
    return tuple(float(share) for share in np.minimum.accumulate(np.minimum(1.0, np.asarray(passing) * factor)))


def oracle(right: np.ndarray, costs: Sequence[float]) -> Reached:
    """What no router beats (Duo-LLM, Alizadeh et al., arXiv:2410.10846, section 3): for each input the cheapest way
    that is right, the cheapest of all where none is. `right` bool [V, N], `costs` [V]."""
    order = np.argsort(np.asarray(costs), kind="stable")
    sorted_right = right[order]
    first = np.where(sorted_right.any(0), sorted_right.argmax(0), 0)
    return reach(order[first], right, costs)

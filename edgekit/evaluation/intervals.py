"""How sure a measured share, or a difference between two models on the same samples, is. 95 % unless told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgekit.errors import DataError
from edgekit.report.metrics import wilson_interval

Z = 1.96
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def share(hits: np.ndarray) -> Interval:
    """The mean of `hits`, bool [N], in Wilson's interval. Raises DataError where there are none."""
    _check_hits(hits)
    value = float(hits.mean())
    return Interval(value, *wilson_interval(value, len(hits), Z))


def share_difference(hits: np.ndarray, others: np.ndarray) -> Interval:
    """mean(hits) - mean(others) for the same samples, bool [N] twice: Newcombe's hybrid score interval with his
    correction of the correlation (Statistics in Medicine 17, 1998, pages 2635 to 2650, method 10).

    Unlike McNemar's interval it keeps a width where both models answer alike. Raises DataError for unequal lengths.
    """
    _check_hits(hits)
    _check_hits(others)
    if hits.shape != others.shape:
        raise DataError(f"{len(hits)} answers against {len(others)}: a paired interval needs the same samples")
    first, second = share(hits), share(others)
    value, phi = first.value - second.value, _correlation(hits, others)

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    low = value - reach(first.value - first.low, second.high - second.value)
    high = value + reach(first.high - first.value, second.value - second.low)
    return Interval(value, max(-1.0, low), min(1.0, high))


def _correlation(hits: np.ndarray, others: np.ndarray) -> float:
    """Of two binary variables, shrunk by half a sample where it is positive; 0 where one of them is constant."""
    both, first, second = (int(part.sum()) for part in (hits & others, hits & ~others, ~hits & others))
    neither = len(hits) - both - first - second
    size = (both + first) * (second + neither) * (both + second) * (first + neither)
    if not size:
        return 0.0
    cross: float = both * neither - first * second
    if cross > 0:
        cross = max(0.0, cross - len(hits) / 2)
    return float(cross / math.sqrt(size))


def mcnemar(hits: np.ndarray, others: np.ndarray) -> float:
    """The two-sided p-value of "both models are right equally often": exact, binomial on the samples where they
    differ (McNemar, Psychometrika 12, 1947)."""
    _check_hits(hits)
    _check_hits(others)
    gained, lost = int((hits & ~others).sum()), int((~hits & others).sum())
    differing = gained + lost
    tail: int = sum(math.comb(differing, count) for count in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2**differing))


def bootstrap(
    statistic: Callable[[np.ndarray], float], count: int, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval (Efron 1979) of `statistic`, a function of sample indices int64 [count].

    Let it return a difference of two models at the same indices, and the interval is paired. Raises DataError for
    no samples.
    """
    if count < 1 or resamples < 1:
        raise DataError(f"{count} samples drawn {resamples} times, allowed one and more of both")
    draw = np.random.default_rng(seed)
    values = [statistic(draw.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.percentile(values, (2.5, 97.5))
    return Interval(float(statistic(np.arange(count))), float(low), float(high))


def _check_hits(hits: np.ndarray) -> None:
    if hits.dtype != np.bool_ or hits.ndim != 1 or not len(hits):
        raise DataError(f"answers {hits.dtype} {hits.shape}, allowed bool [N] with N from 1")

"""Successive halving: many candidates for a short time, the better half for twice as long, and so on.

Jamieson and Talwalkar 2016, Non-stochastic Best Arm Identification and Hyperparameter Optimization (AISTATS, algorithm
1): each rung costs the same in all, and what is far from the best is left early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Candidate = TypeVar("Candidate")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Rung(Generic[Candidate, Result]):
    """`seconds` for each; `found` best first."""

    seconds: float
    found: tuple[tuple[Candidate, Result], ...]


def rung_sizes(count: int, last: int = 2) -> list[int]:
    """How many candidates each rung has: `count`, then half as many, down to `last`."""
    sizes = [count]
    while sizes[-1] > last:
        sizes.append(max(last, math.ceil(sizes[-1] / 2)))
    return sizes


def halve(
    candidates: Sequence[Candidate],
    evaluate: Callable[[Candidate, float], Result],
    score: Callable[[Result], tuple[float, ...]],
    seconds: float,
    last: int = 2,
) -> Iterator[Rung[Candidate, Result]]:
    """`evaluate(candidate, seconds)` of each; a rung as soon as it is complete. Higher scores are better; of equal ones
    those that came first stay."""
    left = list(candidates)
    for index, size in enumerate(rung_sizes(len(left), last)):
        left = left[:size]
        each = seconds * 2**index
        found = [(candidate, evaluate(candidate, each)) for candidate in left]
        found.sort(key=lambda pair: score(pair[1]), reverse=True)
        left = [candidate for candidate, _ in found]
        yield Rung(each, tuple(found))

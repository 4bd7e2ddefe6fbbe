"""Many partitions of one graph: the trade-offs that weights can reach, and the cuts that some link makes worth it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, count

import numpy as np

from edgekit.errors import UsageError
from edgekit.planning.graph import LayeredGraph, Partition
from edgekit.planning.link import Link
from edgekit.planning.mincut import Space, cut, unlimited
from edgekit.planning.plan import Objective, Power
from edgekit.planning.terms import FIGURES, Terms, terms

# Of the range of each axis: what keeps an end of the front from losing for nothing in the other figures.
NUDGE = 1e-6


def frontier(
    graph: LayeredGraph,
    links: Sequence[Link],
    axes: Sequence[str] = ("latency_ms", "bytes_sent"),
    power: Power | None = None,
    points: int = 24,
) -> list[Partition]:
    """The supported Pareto front over two or three of FIGURES: partitions that some weights make the best, in the
    order of the first axis, about `points` cuts in all. What lies inside the front's hull needs limits
    (`best_partition`). `cost` is the first axis.

    Two axes: the widest gap between neighbours is asked first (Aneja and Nair, Management Science 1979). Three: each
    pair of them, and weights between. Raises UsageError for other axes.
    """
    if not 2 <= len(axes) <= 3 or len(set(axes)) != len(axes) or not set(axes) <= set(FIGURES):
        raise UsageError(f"axes {list(axes)}, allowed two or three of {', '.join(FIGURES)}")
    front = _Front(terms(graph, links, power), [FIGURES.index(axis) for axis in axes])
    pairs = list(combinations(range(len(axes)), 2))
    share = points // (len(pairs) + (len(axes) > 2))
    for pair in pairs:
        front.sweep(pair, share)
    if len(axes) > 2:
        front.spread(share)
    return front.partitions()


@dataclass(frozen=True)
class UsefulCut:
    """A partition, as the first of `links` prices it, and every setting of the links under which it is the best."""

    partition: Partition
    links: tuple[tuple[Link, ...], ...]


def useful_cuts(
    graph: LayeredGraph,
    links_grid: Iterable[Sequence[Link]],
    objective: Objective | None = None,
    power: Power | None = None,
) -> list[UsefulCut]:
    """The distinct best partitions over a grid of links, those that leave most on the device first.

    Partitions that differ in nodes alone which cost nothing anywhere count as one.
    """
    free = [index for index, work in enumerate(graph.works) if not any(work.latency_ms) and not work.memory_bytes]
    found: dict[tuple[int, ...], tuple[Partition, list[tuple[Link, ...]]]] = {}
    for links in links_grid:
        best = unlimited(graph, links, objective, power)
        tiers = list(best.tier_of)
        for index in free:
            tiers[index] = -1
        found.setdefault(tuple(tiers), (best, []))[1].append(tuple(links))
    cuts = [UsefulCut(partition, tuple(wins)) for partition, wins in found.values()]
    return sorted(cuts, key=lambda each: (sum(each.partition.tier_of), each.partition.tier_of))


class _Front:
    def __init__(self, terms: Terms, axes: Sequence[int]) -> None:
        self._terms, self._axes = terms, list(axes)
        self._space = Space.whole(terms)
        self._found: dict[bytes, tuple[np.ndarray, Partition]] = {}
        # Everything on the device: a scale of each figure, so that weights of different units can be mixed.
        least = [self._solve(np.eye(len(axes))[axis]) for axis in range(len(axes))]
        self._range = np.maximum(np.max(least, axis=0) - np.min(least, axis=0), 1e-12)
        self._found.clear()
        self._ends = [self._solve(self._mixed(np.eye(len(axes))[axis])) for axis in range(len(axes))]

    def sweep(self, pair: tuple[int, int], points: int) -> None:
        """Between the ends of two axes, at most `points` cuts."""
        order, asked = count(), 0
        queue: list[tuple[float, int, np.ndarray, np.ndarray]] = []

        def ask(a: np.ndarray, b: np.ndarray) -> None:
            gap = np.abs(a - b)[list(pair)] / self._range[list(pair)]
            if gap.min() > NUDGE:
                heapq.heappush(queue, (-float(np.prod(gap)), next(order), a, b))

        ask(self._ends[pair[0]], self._ends[pair[1]])
        while queue and asked < points:
            _, _, a, b = heapq.heappop(queue)
            weights = np.zeros(len(self._axes))
            weights[pair[0]], weights[pair[1]] = abs(a[pair[1]] - b[pair[1]]), abs(a[pair[0]] - b[pair[0]])
            weights /= (weights * self._range).sum()
            between, asked = self._solve(weights + NUDGE / self._range), asked + 1
            if weights @ between < weights @ a * (1 - 1e-9) - 1e-12:
                ask(a, between)
                ask(between, b)

    def spread(self, points: int) -> None:
        """Weights all over the simplex, each axis at the scale of its range."""
        side = max(2, int((2 * points) ** 0.5))
        for a in range(1, side):
            for b in range(1, side - a):
                self._solve(self._mixed(np.array([a, b, side - a - b]) / side))

    def partitions(self) -> list[Partition]:
        """Those that no other beats, in the order of the first axis."""
        rows = sorted(self._found.values(), key=lambda row: tuple(row[0]))
        figures = np.array([row[0] for row in rows])
        kept: list[Partition] = []
        for index, (_, partition) in enumerate(rows):
            earlier = figures[:index]
            if not bool((earlier <= figures[index] + 1e-9 * np.abs(figures[index])).all(axis=1).any()):
                kept.append(partition)
        return kept

    def _mixed(self, shares: np.ndarray) -> np.ndarray:
        return np.asarray((shares + NUDGE) / self._range)

    def _solve(self, weights: np.ndarray) -> np.ndarray:
        """The figures on the axes."""
        whole = np.zeros(len(FIGURES))
        whole[self._axes] = weights
        found = cut(self._terms, whole, self._space)
        figures = self._terms.figures(found.tier_of, found.coding)[self._axes]
        first = np.eye(len(FIGURES))[self._axes[0]]
        if figures.tobytes() not in self._found:
            self._found[figures.tobytes()] = (figures, self._terms.partition(found.tier_of, found.coding, first))
        return np.asarray(figures)

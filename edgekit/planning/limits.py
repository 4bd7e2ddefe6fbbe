"""The best partition under limits: Lagrange multipliers inside the min cut, branch and bound around it.

A limit couples every node, so the problem is NP-hard in general (a knapsack). A multiplier turns each limit into a
price, and any prices give a lower bound by one cut; the prices are found by cutting planes (Kelley, SIAM J. 1960).
Where the bound and the best partition within the limits do not meet, the space is split at a node on which the priced
cuts disagree, most promising half first, until they meet or `effort` cuts are spent.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from edgekit.errors import PlanError
from edgekit.planning.closure import EmptySpaceError
from edgekit.planning.graph import LayeredGraph, Partition
from edgekit.planning.link import Link
from edgekit.planning.mincut import Cut, Space, cut, unlimited
from edgekit.planning.plan import Objective, PlanLimits, Power
from edgekit.planning.terms import FIGURES, Terms, terms, weights_of

# Bounds closer than this, relative, count as met; the rounding of capacities is of this order.
TOLERANCE = 1e-6
KELLEY_ROUNDS = 20
SLACK = 1 + 1e-9


def best_partition(
    graph: LayeredGraph,
    links: Sequence[Link],
    objective: Objective | None = None,
    limits: PlanLimits | None = None,
    power: Power | None = None,
    effort: int = 200,
) -> Partition:
    """The partition of least cost within the limits; `lower_bound` says how far from the optimum it can be.

    It is the optimum (up to the rounding of the min cut) unless `effort` cuts did not suffice. Raises PlanError that
    names the limit that no partition meets, or says that none was found that meets all of them.
    """
    objective, limits = objective or Objective(), limits or PlanLimits()
    bounds = {index: float(limit) for index, name in enumerate(FIGURES) if (limit := getattr(limits, name)) is not None}
    if not bounds:
        return unlimited(graph, links, objective, power)
    return _Search(terms(graph, links, power), weights_of(objective), bounds, effort).run()


@dataclass(frozen=True)
class _Found:
    """A cut with its cost and by how much, in parts of each limit, it passes them [d] (negative: room left)."""

    cut: Cut
    cost: float
    over: np.ndarray
    space: Space


class _Search:
    def __init__(self, terms: Terms, weights: np.ndarray, bounds: dict[int, float], effort: int) -> None:
        self._terms, self._weights, self._effort = terms, weights, effort
        self._figures = np.array(list(bounds))
        self._limits = np.array(list(bounds.values()))
        self._units = np.where(self._limits > 0, self._limits, 1.0)
        self._best: _Found | None = None

    def run(self) -> Partition:
        order = count()
        bound, found = self._bound(Space.whole(self._terms))
        queue = [(bound, next(order), found)]
        while queue and not self._is_met(queue[0][0]) and self._effort > 0:
            above, _, found = heapq.heappop(queue)
            for space in self._branches(found):
                bound, inside = self._bound(space, above, found)
                if inside and not self._is_met(bound):
                    heapq.heappush(queue, (bound, next(order), inside))
        lowest = queue[0][0] if queue else np.inf
        if self._best is None:
            names = ", ".join(FIGURES[index] for index in self._figures)
            known = "can meet" if not queue else "was found that meets"
            raise PlanError(f"no partition {known} the limits on {names} together", binding=names.replace(" ", ""))
        best = self._best
        return self._terms.partition(
            best.cut.tier_of, best.cut.coding, self._weights, min(best.cost, lowest) - best.cut.error
        )

    def _is_met(self, bound: float) -> bool:
        return self._best is not None and bound >= self._best.cost * (1 - TOLERANCE) - 1e-12

    def _priced(self, space: Space, prices: np.ndarray, share: float = 1.0) -> _Found:
        """The cut that is best where each limit is paid for; `share` 0 leaves the objective out."""
        self._effort -= 1
        weights = share * self._weights
        np.add.at(weights, self._figures, prices / self._units)
        found = cut(self._terms, weights, space)
        figures = self._terms.figures(found.tier_of, found.coding)
        over = (figures[self._figures] - self._limits) / self._units
        here = _Found(found, float(self._weights @ figures), over, space)
        is_within = bool((figures[self._figures] <= self._limits * SLACK).all())
        if is_within and (self._best is None or here.cost < self._best.cost):
            self._best = here
        return here

    def _bound(
        self, space: Space, above: float | None = None, known: Sequence[_Found] = ()
    ) -> tuple[float, list[_Found]]:
        """A lower bound over `space` by Kelley's method, and the cuts that shaped it; no cuts where none is left.

        `above` is the bound of the space that this one is a part of, `known` the cuts there.
        """
        count = len(self._limits)
        found = [replace(each, space=space) for each in known if self._holds(space, each)]
        bound = -np.inf if above is None else above
        try:
            if above is None or not found:
                found.append(self._priced(space, np.zeros(count)))
                bound = max(bound, found[-1].cost - found[-1].cut.error)
            if any((each.over <= SLACK - 1).all() and each.cost <= bound for each in found):
                return bound, found
            for index in range(count):
                if all(each.over[index] > SLACK - 1 for each in found):
                    least = self._priced(space, np.eye(count)[index], share=0.0)
                    if least.over[index] > SLACK - 1 + least.cut.error:
                        if above is None:
                            raise self._refusal(index, least.over[index])
                        return np.inf, []
                    found.append(least)
        except EmptySpaceError:
            return np.inf, []
        for _ in range(KELLEY_ROUNDS):
            if self._is_met(bound) or self._effort <= 0:
                break
            ceiling, prices = self._highest(found)
            if ceiling - bound <= TOLERANCE * abs(ceiling):
                break
            priced = self._priced(space, prices)
            bound = max(bound, priced.cost + float(prices @ priced.over) - priced.cut.error)
            found.append(priced)
        return bound, found

    def _holds(self, space: Space, found: _Found) -> bool:
        tier_of, coding = found.cut.tier_of, found.cut.coding
        if not ((space.low <= tier_of) & (tier_of <= space.high)).all():
            return False
        if space.allowed is None:
            return True
        value, link = np.nonzero(self._terms.crossed(tier_of))
        return bool(space.allowed[coding[value, link], link].all())

    def _highest(self, found: Sequence[_Found]) -> tuple[float, np.ndarray]:
        """The prices at which the known cuts leave the bound the most room, and that bound: a small linear program."""
        from scipy.optimize import linprog

        count = len(self._limits)
        most = 1e3 * max(1.0, *(abs(each.cost) for each in found))
        rows = np.array([[1.0, *(-each.over)] for each in found])
        solved = linprog(
            [-1.0, *np.zeros(count)],
            A_ub=rows,
            b_ub=[each.cost for each in found],
            bounds=[(None, None), *[(0.0, most)] * count],
            method="highs",
        )
        return float(solved.x[0]), np.maximum(solved.x[1:], 0.0)

    def _branches(self, found: Sequence[_Found]) -> list[Space]:
        """Two halves of the space, split where the cuts disagree: at the middle such node, else at such a coding."""
        space = found[0].space
        tiers = np.stack([each.cut.tier_of for each in found])
        apart = np.flatnonzero(tiers.min(axis=0) < tiers.max(axis=0))
        if len(apart):
            node = apart[len(apart) // 2]
            low, high = space.low.copy(), space.high.copy()
            high[node] = tiers[:, node].min()
            low[node] = high[node] + 1
            return [replace(space, high=high), replace(space, low=low)]
        codings = np.stack([each.cut.coding for each in found])
        crossed = self._terms.crossed(tiers[0])
        rows = np.argwhere(crossed & (codings.min(axis=0) < codings.max(axis=0)))
        if not len(rows):
            return self._apart(space, tiers[0], crossed)
        value, link = rows[len(rows) // 2]
        return self._by_coding(space, value, link, codings[:, value, link].min())

    def _apart(self, space: Space, tier_of: np.ndarray, crossed: np.ndarray) -> list[Space]:
        """Where all cuts agree and yet break a limit: whatever is still open."""
        open_nodes = np.flatnonzero(space.low < space.high)
        if len(open_nodes):
            node = open_nodes[len(open_nodes) // 2]
            low, high = space.low.copy(), space.high.copy()
            high[node] = min(tier_of[node], space.high[node] - 1)
            low[node] = high[node] + 1
            return [replace(space, high=high), replace(space, low=low)]
        allowed = np.ones(self._terms.coding.shape[1:], bool) if space.allowed is None else space.allowed
        for value, link in np.argwhere(crossed):
            own = np.flatnonzero(allowed[:, link] & (self._terms.value_of == value))
            if len(own) > 1:
                return self._by_coding(space, value, link, own[0])
        return []

    def _by_coding(self, space: Space, value: int, link: int, coding: int) -> list[Space]:
        """The value crosses the link in this coding, or in any other."""
        allowed = np.ones(self._terms.coding.shape[1:], bool) if space.allowed is None else space.allowed
        only, others = allowed.copy(), allowed.copy()
        only[self._terms.value_of == value, link] = False
        only[coding, link] = True
        others[coding, link] = False
        return [replace(space, allowed=only), replace(space, allowed=others)]

    def _refusal(self, index: int, over: float) -> PlanError:
        name, limit = FIGURES[self._figures[index]], self._limits[index]
        best = limit + over * self._units[index]
        return PlanError(
            f"no partition meets the limit on {name}: {best:.4g} at best, allowed {limit:.4g}",
            binding=name,
            hint=f"allow {best:.4g} or more",
        )

"""The exact optimum for k tiers in order, by one s-t min cut.

Node v has one boolean for each link l: x[v, l] = 1 where v lies above the link. Tiers are in order and data flow only
upwards, so x[v, l + 1] implies x[v, l], and x[producer, l] implies x[consumer, l]. A value with several consumers has
y[value, l], implied by each of them: it crosses once, at the price y - x[producer]. A link has z[l], implied by every
node above it: its round trip is paid once. All costs are then linear in booleans under implications, a closure
problem, which is a min cut; for two tiers this is the graph of Hu et al., INFOCOM 2019 ("DADS").

Before the flow is sought, values that cost more to send than the best trivial partition leaves room for are
contracted: their ends lie on the same side of that link in every optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.planning.closure import least_closure
from edgekit.planning.graph import LayeredGraph, Partition
from edgekit.planning.link import Link
from edgekit.planning.plan import Objective, Power
from edgekit.planning.terms import Terms, terms, weights_of


@dataclass(frozen=True)
class Space:
    """Which partitions are looked at: `low` and `high` [n] bound each node's tier; `allowed` [c, k - 1] codings."""

    low: np.ndarray
    high: np.ndarray
    allowed: np.ndarray | None = None

    @classmethod
    def whole(cls, terms: Terms) -> Space:
        high = np.full(terms.nodes, terms.tiers - 1)
        high[0] = 0
        return cls(np.zeros(terms.nodes, np.int64), high)


@dataclass(frozen=True)
class Cut:
    """`tier_of` [n], `coding` [m, k - 1] and the weighted cost; the optimum is at least `cost - error`."""

    tier_of: np.ndarray
    coding: np.ndarray
    cost: float
    error: float


def unlimited(
    graph: LayeredGraph, links: Sequence[Link], objective: Objective | None = None, power: Power | None = None
) -> Partition:
    """The best partition without limits. Raises UsageError for other links than the tiers need."""
    priced, weights = terms(graph, links, power), weights_of(objective or Objective())
    found = cut(priced, weights, Space.whole(priced))
    return priced.partition(found.tier_of, found.coding, weights, found.cost - found.error)


def cut(terms: Terms, weights: np.ndarray, space: Space) -> Cut:
    """The partition in `space` of least `weights @ figures`; among equals the one with most nodes on low tiers.

    Raises EmptySpaceError for a space that holds no partition.
    """
    node = np.tensordot(weights, terms.node, 1)
    crossing, coding = terms.crossings(weights, space.allowed)
    fixed = weights @ terms.fixed
    dear = _dear(terms, node, crossing, fixed, space)
    cost, implications = _closure(terms, node, crossing, fixed, dear)
    chosen, error = least_closure(cost, implications, *_pins(terms, space))
    tier_of = chosen[: terms.nodes * (terms.tiers - 1)].reshape(terms.tiers - 1, terms.nodes).sum(axis=0)
    return Cut(tier_of, coding, float(weights @ terms.figures(tier_of, coding)), error)


def _dear(terms: Terms, node: np.ndarray, crossing: np.ndarray, fixed: np.ndarray, space: Space) -> np.ndarray:
    """Whether each value is too dear to send over each link [m, k - 1]: even with every node on its cheapest tier, the
    sum would pass that of a partition which is known."""
    n, known = terms.nodes, float("inf")
    for tier in range(terms.tiers):
        tier_of = np.clip(np.full(n, tier), space.low, space.high)
        if (tier_of[np.repeat(terms.producer, _consumers(terms))] <= tier_of[terms.consumer]).all():
            sent = float(crossing[terms.crossed(tier_of)].sum())
            known = min(known, float(node[np.arange(n), tier_of].sum() + sent + fixed[: tier_of.max()].sum()))
    tiers = np.arange(terms.tiers)
    reachable = (space.low[:, None] <= tiers) & (tiers <= space.high[:, None])
    floor = np.where(reachable, node, np.inf).min(axis=1).sum()
    return np.asarray(crossing + fixed > (known - floor) * (1 + 1e-9) + 1e-12)


def _closure(
    terms: Terms, node: np.ndarray, crossing: np.ndarray, fixed: np.ndarray, dear: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The cost of each boolean, x first (link by link), then y, then z; and implications as rows (if, then).

    Where a value is too dear to send, its implications hold both ways.
    """
    n, links = terms.nodes, terms.tiers - 1
    counts = _consumers(terms)
    shared, single = np.flatnonzero(counts > 1), np.flatnonzero(counts == 1)
    value = np.repeat(np.arange(len(counts)), counts)
    position = np.full(len(counts), -1)
    position[shared] = np.arange(len(shared))
    is_shared = counts[value] > 1
    sinks = np.setdiff1d(np.arange(n), terms.producer)
    x_cost = np.diff(node, axis=1).T.copy()
    rows = []
    for link in range(links):
        np.subtract.at(x_cost[link], terms.producer, crossing[:, link])
        np.add.at(x_cost[link], terms.consumer[terms.first_consumer[single]], crossing[single, link])
        x, y, z = link * n, links * n + link * len(shared), links * (n + len(shared)) + link
        upwards = np.stack([x + terms.producer[value], x + terms.consumer], axis=1)
        once = np.stack([x + terms.consumer, y + position[value]], axis=1)
        rows += [upwards, upwards[dear[value, link], ::-1]]
        rows += [once[is_shared], once[is_shared & dear[value, link], ::-1]]
        rows.append(np.stack([x + sinks, np.full(len(sinks), z)], axis=1))
        if link:
            rows.append(np.stack([x + np.arange(n), x - n + np.arange(n)], axis=1))
    cost = np.concatenate([x_cost.ravel(), crossing[shared].T.ravel(), fixed])
    return cost, np.concatenate(rows) if rows else np.zeros((0, 2), np.int64)


def _consumers(terms: Terms) -> np.ndarray:
    """How many consumers each value has [m]."""
    return np.diff(np.append(terms.first_consumer, len(terms.consumer)))


def _pins(terms: Terms, space: Space) -> tuple[np.ndarray, np.ndarray]:
    """The booleans that are 1, and those that are 0, in the whole space."""
    link = np.arange(terms.tiers - 1)[:, None]
    return np.flatnonzero((space.low > link).ravel()), np.flatnonzero((space.high <= link).ravel())

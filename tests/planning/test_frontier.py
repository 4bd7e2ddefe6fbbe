from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.planning.bruteforce import assignments, price
from edgekit.planning.frontier import frontier, useful_cuts
from edgekit.planning.graph import Crossed, LayeredGraph, Work, chain
from edgekit.planning.link import Link
from edgekit.planning.plan import Objective, Power
from edgekit.planning.random_graph import random_graph, random_links

POWER = Power(10, 2, 0.5)


def _every_figure(graph: LayeredGraph, links: list[Link], axes: tuple[str, ...]) -> np.ndarray:
    """The figures of every partition in every coding."""
    rows = []
    for tier_of in assignments(graph):
        crossings = [
            (number, link)
            for number, value in enumerate(graph.values)
            for link in range(tier_of[value.producer], max(tier_of[consumer] for consumer in value.consumers))
        ]
        for codings in product(*(range(len(graph.values[number].codings)) for number, _ in crossings)):
            crossed = [Crossed(*pair, coding) for pair, coding in zip(crossings, codings, strict=True)]
            found = price(graph, links, tier_of, crossed, Objective(), POWER)
            rows.append([getattr(found, axis) for axis in axes])
    return np.array(rows)


@pytest.mark.parametrize("axes", [("latency_ms", "bytes_sent"), ("latency_ms", "drop"), ("energy_mj", "latency_ms")])
def test_the_front_of_two_figures_is_the_lower_hull_of_all_partitions(axes: tuple[str, str]) -> None:
    rng = np.random.default_rng(2)
    for _ in range(8):
        graph, links = random_graph(rng, 5, 3, codings=2), random_links(rng)
        figures = _every_figure(graph, links, axes)
        found = np.array([[getattr(p, axis) for axis in axes] for p in frontier(graph, links, axes, POWER, points=60)])
        for share in np.linspace(0.001, 0.999, 60):
            weights = np.array([share, 1 - share]) / np.maximum(np.ptp(figures, axis=0), 1e-9)
            assert (found @ weights).min() == pytest.approx((figures @ weights).min(), rel=1e-4)


def test_the_front_of_three_figures_holds_nothing_that_is_beaten() -> None:
    rng = np.random.default_rng(4)
    axes = ("latency_ms", "bytes_sent", "energy_mj")
    graph, links = random_graph(rng, 30, 3, reach=6), random_links(rng)
    front = np.array([[getattr(p, axis) for axis in axes] for p in frontier(graph, links, axes, POWER)])
    assert len(front) > 2
    for row in front:
        beaten = (front <= row).all(axis=1) & (front < row * (1 - 1e-9)).any(axis=1)
        assert not beaten.any()
    assert (np.diff(front[:, 0]) >= 0).all()


@pytest.mark.parametrize("axes", [("latency_ms",), ("latency_ms", "latency_ms"), ("latency_ms", "beauty")])
def test_other_axes_are_refused(axes: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="axes"):
        frontier(chain([(1, 1)], []), [Link(1)], axes)


def test_useful_cuts_are_those_that_some_link_prefers() -> None:
    """Feature sizes fall along the chain: the better the link, the earlier the cut."""
    graph = chain([(0, 0), (10, 1), (10, 1), (10, 1)], [300_000, 30_000, 3_000])
    grid = [[Link(bandwidth, 1)] for bandwidth in (0.01, 0.1, 5, 20, 40, 200, 1000)]
    cuts = useful_cuts(graph, grid)
    assert [each.partition.tier_of for each in cuts] == [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 1), (0, 1, 1, 1)]
    bandwidths = [links[0].bandwidth_mbps for each in cuts for links in each.links]
    assert bandwidths == [links[0].bandwidth_mbps for links in grid]


def test_a_cut_before_or_after_a_free_node_is_one_cut() -> None:
    works = (Work("s", (0.0, 0.0)), Work("view", (0.0, 0.0)), Work("end", (10.0, 1.0)))
    graph = LayeredGraph(works, chain([(0, 0)] * 3, [10_000, 9_000]).values)
    other = [[Link(bandwidth, 0.5)] for bandwidth in (50, 100)]
    assert len(useful_cuts(graph, other)) == 1

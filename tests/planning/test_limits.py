from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from edgekit.errors import PlanError
from edgekit.planning.bruteforce import brute_force, price
from edgekit.planning.graph import Coding, LayeredGraph, Value, Work, chain
from edgekit.planning.limits import best_partition
from edgekit.planning.link import Link
from edgekit.planning.mincut import unlimited
from edgekit.planning.plan import Objective, PlanLimits, Power
from edgekit.planning.random_graph import random_graph, random_links
from edgekit.planning.terms import FIGURES


def _random_limits(rng: np.random.Generator, figures: dict[str, list[float]]) -> PlanLimits:
    """One to three limits somewhere between what the best partitions of each kind need."""
    limits = {}
    for name in rng.choice(FIGURES, int(rng.integers(1, 4)), replace=False).tolist():
        low, high = (0.0, 1.5) if name == "drop" else (0.9 * min(figures[name]), 1.05 * max(figures[name]))
        limits[name] = float(rng.uniform(low, high))
    return PlanLimits(**limits)


def test_limited_partitions_equal_brute_force_on_random_dags() -> None:
    rng, seen = np.random.default_rng(11), Counter[str]()
    for _ in range(120):
        tiers = int(rng.integers(2, 4))
        graph, links = random_graph(rng, int(rng.integers(2, 6)), tiers, codings=3), random_links(rng, tiers)
        power = Power(*rng.uniform(0, 3, 3).tolist()) if rng.random() < 0.7 else None
        objective = Objective(*rng.uniform(0, 1, 3).tolist()) if rng.random() < 0.5 else Objective()
        ends = [unlimited(graph, links, each, power) for each in (objective, Objective(0, 1, 0), Objective(0, 0, 1))]
        limits = _random_limits(rng, {name: [getattr(end, name) for end in ends] for name in FIGURES})
        best = brute_force(graph, links, objective, limits, power)
        try:
            found = best_partition(graph, links, objective, limits, power)
        except PlanError as error:
            assert best is None, error
            seen["impossible"] += 1
            continue
        assert best is not None
        assert found.cost == pytest.approx(best.cost, rel=3e-6, abs=1e-9)
        told = price(graph, links, found.tier_of, found.crossed, objective, power)
        assert found.cost == pytest.approx(told.cost, rel=1e-9, abs=1e-9)
        seen["bound" if found.cost > ends[0].cost * (1 + 1e-6) else "free"] += 1
    # Otherwise the limits would not be worth testing with.
    assert min(seen["impossible"], seen["bound"], seen["free"]) >= 10


def test_a_limit_on_memory_pushes_nodes_up() -> None:
    works = tuple(Work(f"n{i}", (1.0, 1.5), memory_bytes=float(i)) for i in range(4))
    graph = LayeredGraph(works, tuple(Value(i, (i + 1,), (Coding(1000),)) for i in range(3)))
    assert best_partition(graph, [Link(8, 5)]).tier_of == (0, 0, 0, 0)
    assert best_partition(graph, [Link(8, 5)], limits=PlanLimits(memory_bytes=5)).tier_of == (0, 0, 0, 1)
    assert best_partition(graph, [Link(8, 5)], limits=PlanLimits(memory_bytes=0)).tier_of == (0, 1, 1, 1)


def test_a_limit_on_points_takes_the_finer_coding() -> None:
    works = (Work("a", (0.0, 0.0)), Work("b", (100.0, 1.0)))
    graph = LayeredGraph(works, (Value(0, (1,), (Coding(4000), Coding(100, drop=2.0))),))
    assert best_partition(graph, [Link(8)]).bytes_sent == 100
    assert best_partition(graph, [Link(8)], limits=PlanLimits(drop=1.0)).bytes_sent == 4000


def test_points_are_spent_where_they_save_most() -> None:
    """A knapsack: no price alone finds it, branching on codings does."""
    works = (Work("s", (0.0, 0.0)), *(Work(f"n{i}", (0.0, 0.0)) for i in range(3)), Work("end", (1e3, 0.0)))
    saved = (6000.0, 5000.0, 5000.0)
    drops = (1.5, 1.0, 1.0)
    values = [Value(0, (1, 2, 3), (Coding(1e9),))]
    values += [Value(i + 1, (4,), (Coding(7000.0), Coding(7000.0 - saved[i], drop=drops[i]))) for i in range(3)]
    graph = LayeredGraph(works, tuple(values))
    found = best_partition(graph, [Link(8)], limits=PlanLimits(drop=2.0))
    assert found.tier_of == (0, 0, 0, 0, 1)
    assert [each.coding for each in found.crossed] == [0, 1, 1]
    assert found.lower_bound == pytest.approx(found.cost, rel=1e-5)


@pytest.mark.parametrize(("limits", "binding"), [
    (PlanLimits(latency_ms=3), "latency_ms"),
    (PlanLimits(memory_bytes=50), "memory_bytes"),
    (PlanLimits(energy_mj=1), "energy_mj"),
])  # fmt: skip
def test_a_limit_that_nothing_meets_is_named(limits: PlanLimits, binding: str) -> None:
    graph = LayeredGraph((Work("a", (5.0, 5.0), 2.0, 100.0),), ())
    with pytest.raises(PlanError, match=f"{binding}.*at best") as caught:
        best_partition(graph, [Link(8)], limits=limits)
    assert caught.value.binding == binding


def test_limits_that_exclude_each_other_are_named_together() -> None:
    """Above in 16 ms for 10,000 bytes, or on the device in 100 ms for none."""
    graph = chain([(0, 0), (100, 1)], [10_000])
    assert best_partition(graph, [Link(8, 5)], limits=PlanLimits(latency_ms=50)).tier_of == (0, 1)
    assert best_partition(graph, [Link(8, 5)], limits=PlanLimits(bytes_sent=9_000)).tier_of == (0, 0)
    with pytest.raises(PlanError, match="can meet the limits on latency_ms, bytes_sent together") as caught:
        best_partition(graph, [Link(8, 5)], limits=PlanLimits(latency_ms=50, bytes_sent=9_000))
    assert caught.value.binding == "latency_ms,bytes_sent"


def test_what_effort_does_not_settle_is_told_by_the_lower_bound() -> None:
    rng = np.random.default_rng(5)
    graph, links = random_graph(rng, 60, 3, codings=3, reach=5), random_links(rng)
    free = best_partition(graph, links)
    limits = PlanLimits(drop=0.5 * free.drop, bytes_sent=0.5 * free.bytes_sent)
    little, much = (best_partition(graph, links, limits=limits, effort=effort) for effort in (12, 300))
    assert free.cost <= much.lower_bound * (1 + 1e-9)
    assert little.lower_bound <= much.cost * (1 + 1e-9)
    assert much.cost <= little.cost * (1 + 1e-9)

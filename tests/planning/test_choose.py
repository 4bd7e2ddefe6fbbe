from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import PlanError
from edgekit.planning.choose import bound_ms, choose, exceeded, front, lean_rates, pick, plans
from edgekit.planning.link import Link
from edgekit.planning.plan import (
    Crossing,
    Links,
    Objective,
    Plan,
    PlanLimits,
    Power,
    RateCost,
    StageCost,
    Way,
    evaluate,
)

LINKS: Links = {("device", "edge"): Link(8, 20), ("edge", "cloud"): Link(80, 10)}
POWER = Power(10, 2, 0.5)


def test_all_ways_at_all_rates_are_plans(whole: Way, split: Way, three: Way) -> None:
    found = plans([whole, split, three], LINKS, POWER)
    assert [(plan.variant, plan.rates) for plan in found] == [
        ("whole", ()),
        *(("split", (rate,)) for rate in range(3)),
        *(("three", rates) for rates in ((0, 0), (0, 1), (1, 0), (1, 1))),
    ]
    assert found[1] == evaluate(split, (0,), LINKS, POWER)


def test_a_way_that_needs_an_unknown_link_is_left_out(whole: Way, split: Way, three: Way) -> None:
    only_edge = {("device", "edge"): Link(8, 20)}
    assert {plan.variant for plan in plans([whole, split, three], only_edge)} == {"whole", "split"}
    assert {plan.variant for plan in plans([whole, split, three], {})} == {"whole"}


@pytest.mark.parametrize(("bandwidth", "variant"), [(0.5, "whole"), (1000, "split")])
def test_the_link_decides(whole: Way, split: Way, bandwidth: float, variant: str) -> None:
    links: Links = {("device", "edge"): Link(bandwidth, 10)}
    assert choose([whole, split], links, limits=PlanLimits(drop=0.5)).variant == variant


def test_the_objective_decides(whole: Way, split: Way) -> None:
    links: Links = {("device", "edge"): Link(2, 20)}
    limits = PlanLimits(drop=0.5)
    assert choose([whole, split], links, limits=limits, power=POWER).variant == "whole"
    assert choose([whole, split], links, Objective(0, 1, 0), limits, POWER).variant == "split"
    assert choose([whole, split], links, Objective(0, 0, 1), limits, POWER).variant == "whole"


def test_among_equals_the_plan_that_loses_least_is_taken(whole: Way) -> None:
    worse = replace(whole, variant="worse", drop=0.5)
    assert choose([worse, whole], {}).variant == "whole"


@pytest.mark.parametrize(("limits", "binding", "words"), [
    (PlanLimits(latency_ms=5), "latency_ms", "allowed 5"),
    (PlanLimits(energy_mj=1), "energy_mj", "allowed 1"),
    (PlanLimits(drop=-1), "drop", "0 points at best"),
    (PlanLimits(memory_bytes=10), "memory_bytes", "400 bytes at best"),
    (PlanLimits(drop=0.2, energy_mj=150), "drop", "0.25 points at best within the other limits, allowed 0.2"),
    (PlanLimits(drop=0.1, energy_mj=200), "energy_mj", "300 mJ at best within the other limits, allowed 200"),
])  # fmt: skip
def test_a_refusal_names_the_limit_and_what_is_possible(
    whole: Way, split: Way, limits: PlanLimits, binding: str, words: str
) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        choose([whole, split], LINKS, limits=limits, power=POWER)
    assert caught.value.binding == binding
    assert "--max-" in caught.value.hint


def test_limits_that_no_single_one_is_to_blame_for_are_named_together() -> None:
    pair = [_plan((1.0, 9.0, 9.0, 1.0)), _plan((9.0, 1.0, 1.0, 9.0))]
    with pytest.raises(PlanError, match="together") as caught:
        pick(pair, limits=PlanLimits(latency_ms=5, energy_mj=5, bytes_sent=5, drop=5))
    assert set(caught.value.binding.split(",")) in ({"energy_mj", "bytes_sent"}, {"latency_ms", "drop"})


def test_the_suggested_limit_is_enough(whole: Way, split: Way) -> None:
    with pytest.raises(PlanError) as caught:
        choose([whole, split], LINKS, limits=PlanLimits(latency_ms=5), power=POWER)
    suggested = float(caught.value.hint.split("--max-latency ")[1].split(",")[0])
    assert choose([whole, split], LINKS, limits=PlanLimits(latency_ms=suggested), power=POWER)


def test_without_any_plan_the_links_are_to_blame(split: Way) -> None:
    with pytest.raises(PlanError) as caught:
        choose([split], {})
    assert caught.value.binding == "links"


FIGURE = st.integers(0, 4).map(float)


def _plan(figures: tuple[float, float, float, float]) -> Plan:
    latency_ms, energy_mj, bytes_sent, drop = figures
    return Plan("v", (), latency_ms, latency_ms, 0.0, energy_mj, bytes_sent, drop, 0, ("device",))


@given(st.lists(st.tuples(FIGURE, FIGURE, FIGURE, FIGURE), max_size=25))
@settings(max_examples=200, deadline=None)
def test_the_front_holds_exactly_what_nothing_beats(rows: list[tuple[float, float, float, float]]) -> None:
    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    kept = [(p.latency_ms, p.energy_mj, p.bytes_sent, p.drop) for p in front([_plan(row) for row in rows])]
    assert kept == sorted({row for row in rows if not any(beats(other, row) for other in rows)})


def test_the_bound_counts_rooflines_bytes_and_half_a_round_trip_each_way(split: Way, whole: Way) -> None:
    assert bound_ms(whole, (), {}) == 20
    assert bound_ms(split, (0,), LINKS) == pytest.approx(3 + 2 + 20 + 10 + 4)
    assert bound_ms(replace(split, local_share=0.5), (0,), LINKS) == pytest.approx(3 + 0.5 * 36)


LADDERS = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 30)), min_size=1, max_size=5)


@settings(max_examples=100)
@given(LADDERS, LADDERS, st.integers(0, 40), st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0, 1e-3))
def test_lean_rates_lose_nothing(
    lower: list[tuple[int, int]],
    upper: list[tuple[int, int]],
    allowed: int,
    first_mbps: float,
    second_mbps: float,
    weight: float,
) -> None:
    """Under any links the cheapest plan within the drop costs the same with all rates and with the lean ones."""
    stage = [StageCost("head", "device", 5.0), StageCost("middle", "edge", 2.0), StageCost("tail", "cloud", 1.0)]
    ladders = [tuple(RateCost(size, drop / 10) for size, drop in ladder) for ladder in (lower, upper)]
    crossings = (
        Crossing("low", ("device", "edge"), ladders[0]),
        Crossing("high", ("edge", "cloud"), ladders[1]),
    )
    way = Way("three", tuple(stage), crossings, drop=0.5)
    links: Links = {("device", "edge"): Link(first_mbps, 10), ("edge", "cloud"): Link(second_mbps, 10)}
    objective, limits = Objective(bytes=weight), PlanLimits(drop=allowed / 10)
    within = [plan for plan in plans([way], links) if not any(exceeded(plan, limits))]
    lean = plans([way], links, rates_of=lambda way: lean_rates(way, limits.drop))
    assert bool(lean) == bool(within)
    assert not any(any(exceeded(plan, limits)) for plan in lean)
    if within:
        assert min(map(objective.cost, lean)) == pytest.approx(min(map(objective.cost, within)))

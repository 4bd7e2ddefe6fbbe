from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.planning.link import Link
from edgekit.planning.plan import Links, Objective, Power, Way, evaluate, path

LINKS: Links = {("device", "edge"): Link(8, 20), ("edge", "cloud"): Link(80, 10)}
POWER = Power(compute_w=10, radio_w=2, idle_w=0.5)


def test_a_local_plan_needs_no_link(whole: Way) -> None:
    plan = evaluate(whole, (), {}, POWER)
    assert (plan.latency_ms, plan.compute_ms, plan.network_ms) == (30, 30, 0)
    assert (plan.energy_mj, plan.bytes_sent, plan.memory_bytes, plan.tiers) == (300, 0, 1000, ("device",))


def test_a_split_plan_adds_up_what_happens_one_after_the_other(split: Way) -> None:
    plan = evaluate(split, (1,), LINKS, POWER)
    up_ms, down_ms = 1.0, 4.0  # 1,000 and 4,000 bytes at 8 Mbit/s
    assert plan.network_ms == pytest.approx(20 + up_ms + down_ms)
    assert plan.compute_ms == pytest.approx(6 + 1 + 0.5 + 4)
    assert plan.latency_ms == pytest.approx(plan.network_ms + plan.compute_ms)
    assert plan.energy_mj == pytest.approx(60 + 1.0 * 10 + 5.0 * 2 + (20 + 0.5 + 4) * 0.5)
    assert (plan.bytes_sent, plan.drop, plan.agreement) == (1_000, 2.25, 0.95)
    assert plan.memory_bytes == 400


def test_without_power_energy_is_that_of_the_parts_alone(split: Way) -> None:
    assert evaluate(split, (1,), LINKS).energy_mj == 60


def test_three_tiers_pay_both_links_and_the_device_only_the_first_one(three: Way) -> None:
    plan = evaluate(three, (1, 0), LINKS, POWER)
    first_ms, second_ms = 20 + 0.8 + 1.0, 10 + 0.4 + 0.1
    assert plan.network_ms == pytest.approx(first_ms + second_ms)
    assert plan.bytes_sent == 800
    assert plan.energy_mj == pytest.approx(30 + 10 + 1.8 * 2 + (20 + second_ms + 0.5 + 0.4 + 0.2 + 3.0) * 0.5)
    assert plan.drop == pytest.approx(1.0)


def test_the_share_that_leaves_early_pays_neither_network_nor_tail(split: Way) -> None:
    full = evaluate(split, (0,), LINKS, POWER)
    early = replace(split, exit_ms=2.0, local_share=0.75, exit_drop=0.5, exit_bytes=7)
    plan = evaluate(early, (0,), LINKS, POWER)
    assert plan.latency_ms == pytest.approx(6 + 1 + 2 + 0.25 * (full.network_ms + 4.5))
    assert plan.bytes_sent == 2_500
    assert plan.drop == full.drop + 0.5
    assert plan.memory_bytes == full.memory_bytes + 7


def test_a_crossing_past_the_edge_takes_both_links_unless_it_has_its_own(split: Way) -> None:
    past = replace(split, crossings=(replace(split.crossings[0], hop=("device", "cloud")),))
    assert path(("device", "cloud"), LINKS) == (Link(8, 20), Link(80, 10))
    both = evaluate(past, (0,), LINKS).network_ms
    assert both == pytest.approx(30 + 10 + 4 + 1 + 0.4)
    direct = {**LINKS, ("device", "cloud"): Link(8, 5)}
    assert evaluate(past, (0,), direct).network_ms == pytest.approx(5 + 10 + 4)


def test_two_parts_of_one_tier_hand_over_without_a_link(three: Way) -> None:
    high = replace(three.crossings[1], hop=("edge", "edge"))
    stages = (*three.stages[:2], replace(three.stages[2], tier="edge"))
    plan = evaluate(replace(three, stages=stages, crossings=(three.crossings[0], high)), (1, 0), LINKS)
    assert plan.network_ms == pytest.approx(20 + 0.8 + 1.0)
    assert plan.compute_ms == pytest.approx(3 + 2 + 1 + 1.5 + 0.6)


def test_what_is_not_there_is_an_error(split: Way) -> None:
    with pytest.raises(KeyError):
        evaluate(split, (0,), {})
    for wrong in (3, -1):
        with pytest.raises(IndexError):
            evaluate(split, (wrong,), LINKS)
    with pytest.raises(ValueError, match="zip"):
        evaluate(split, (0, 0), LINKS)


def test_an_objective_weighs_milliseconds_millijoules_and_bytes(split: Way) -> None:
    plan = evaluate(split, (1,), LINKS, POWER)
    weighed = Objective(latency=1.0, energy=0.5, bytes=0.25).cost(plan)
    assert weighed == pytest.approx(plan.latency_ms + 0.5 * plan.energy_mj + 250)

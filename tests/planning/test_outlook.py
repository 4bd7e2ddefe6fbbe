from __future__ import annotations

from itertools import pairwise

import pytest

from edgekit.bundle.manifest import Manifest
from edgekit.errors import PlanError, UnknownNameError
from edgekit.planning.choose import exceeded, plans
from edgekit.planning.link import Link
from edgekit.planning.outlook import Outlook
from edgekit.planning.plan import Links, Objective, PlanLimits

LINKS: Links = {("device", "edge"): Link(10, 2), ("edge", "cloud"): Link(1000, 5)}


def test_every_way_has_a_reason_and_one_is_chosen(manifest: Manifest) -> None:
    outlook = Outlook.of(manifest, LINKS, "raspberry-pi-4", limits=PlanLimits(drop=0.6))
    chosen = outlook.chosen()
    reasons = outlook.reasons(chosen)
    assert {reason.variant for reason in reasons} == {"whole", "split", "cascade", "three"}
    assert [reason.why for reason in reasons if not reason.lost] == ["chosen"]
    assert reasons[0].best == chosen
    by_variant = {reason.variant: reason for reason in reasons}
    assert by_variant["cascade"].why == "drop 0.8 points, allowed 0.6"
    slower = by_variant["whole" if chosen.variant == "split" else "split"]
    assert slower.why == f"{slower.best.latency_ms - chosen.latency_ms:.4g} ms more"


def test_the_best_of_a_way_is_within_the_limits_where_it_can_be(manifest: Manifest) -> None:
    outlook = Outlook.of(manifest, LINKS, limits=PlanLimits(drop=0.6))
    for reason in outlook.reasons(outlook.chosen()):
        if reason.variant == "split":
            assert reason.best.rates == (1,)


def test_the_chosen_plan_is_shown_even_where_memory_keeps_it_off_the_front(manifest: Manifest) -> None:
    outlook = Outlook.of(manifest, LINKS, limits=PlanLimits(drop=0.6))
    for plan in plans(outlook.ways, LINKS, outlook.power):
        shown = outlook.shown(plan)
        assert plan in shown
        assert [each.latency_ms for each in shown] == sorted(each.latency_ms for each in shown)


def test_a_sweep_covers_the_bandwidths_without_gaps(manifest: Manifest) -> None:
    outlook = Outlook.of(manifest, LINKS, "raspberry-pi-4", limits=PlanLimits(drop=0.6))
    stretches = outlook.sweep()
    assert stretches[0].low_mbps == 0.05
    assert stretches[-1].high_mbps == pytest.approx(2000)
    for before, after in pairwise(stretches):
        assert before.high_mbps == after.low_mbps
        assert before.variant != after.variant
    assert stretches[0].variant == "whole"
    assert stretches[-1].variant == "split"


def test_a_sweep_says_where_nothing_meets_the_limits(manifest: Manifest) -> None:
    local_ms = Outlook.of(manifest, LINKS, "raspberry-pi-4", limits=PlanLimits(bytes_sent=0)).chosen().latency_ms
    limits = PlanLimits(latency_ms=0.8 * local_ms, drop=0.6)
    first, *rest = Outlook.of(manifest, LINKS, "raspberry-pi-4", limits=limits).sweep()
    assert (first.variant, first.binding) == (None, "latency")
    assert rest[-1].variant == "split"


def test_the_objective_and_the_profiles_matter(manifest: Manifest) -> None:
    by_bytes = Outlook.of(manifest, LINKS, objective=Objective(0, 0, 1)).chosen()
    assert by_bytes.bytes_sent == 0
    slow = Outlook.of(manifest, LINKS, servers={"edge": "raspberry-pi-4"})
    fast = Outlook.of(manifest, LINKS)
    assert slow.ways[1].stages[1].latency_ms > fast.ways[1].stages[1].latency_ms
    with pytest.raises(UnknownNameError, match="raspberry-pj"):
        Outlook.of(manifest, LINKS, "raspberry-pj")


def test_broken_limits_are_told_in_words(manifest: Manifest) -> None:
    outlook = Outlook.of(manifest, LINKS, limits=PlanLimits(latency_ms=0.5, drop=0.05))
    with pytest.raises(PlanError):
        outlook.chosen()
    plan = outlook.plans[0]
    assert len(outlook.broken(plan)) == len(list(exceeded(plan, outlook.limits))) == 2
    assert outlook.broken(plan)[1] == "drop 0.1 points, allowed 0.05"

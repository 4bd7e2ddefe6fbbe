from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.errors import PlanError
from edgekit.planning.estimate import LinkEstimate
from edgekit.planning.link import Link
from edgekit.planning.plan import Hop, PlanLimits, Way
from edgekit.planning.replan import Replanner

HOP: Hop = ("device", "edge")
FAST, SLOW = Link(100, 5), Link(0.5, 60)


def _known(link: Link) -> dict[Hop, LinkEstimate]:
    """An estimate that has seen enough of `link` to be sure."""
    estimate = LinkEstimate(link)
    for index in range(30):
        size_bytes = (500.0, 20_000.0)[index % 2]
        estimate.observe(size_bytes, link.rtt_ms + link.transfer_ms(size_bytes), index * 0.1)
    return {HOP: estimate}


NOW_S = 3.0


def test_the_first_decision_is_the_best_plan(whole: Way, split: Way) -> None:
    decision = Replanner().decide([whole, split], _known(FAST), NOW_S)
    assert (decision.plan.variant, decision.why, decision.in_time) == ("split", "first", 1.0)
    assert Replanner().decide([whole, split], _known(SLOW), NOW_S).plan.variant == "whole"


def test_a_better_plan_takes_over_after_it_won_often_enough(whole: Way, split: Way) -> None:
    replanner = Replanner(patience=3)
    assert replanner.decide([whole, split], _known(SLOW), NOW_S).plan.variant == "whole"
    seen = [replanner.decide([whole, split], _known(FAST), NOW_S) for _ in range(4)]
    assert [decision.plan.variant for decision in seen] == ["whole", "whole", "split", "split"]
    assert [decision.why for decision in seen] == ["kept", "kept", "better", "kept"]
    assert [decision.changed for decision in seen] == [False, False, True, False]


def test_wins_must_be_in_a_row(whole: Way, split: Way) -> None:
    replanner = Replanner(patience=2)
    replanner.decide([whole, split], _known(SLOW), NOW_S)
    for _ in range(3):
        assert replanner.decide([whole, split], _known(FAST), NOW_S).why == "kept"
        assert replanner.decide([whole, split], _known(SLOW), NOW_S).why == "kept"


def test_a_gain_below_the_margin_changes_nothing(whole: Way) -> None:
    a_little_better = replace(whole, variant="other", stages=(replace(whole.stages[0], latency_ms=28.5),))
    replanner = Replanner(patience=1, margin=0.1)
    replanner.decide([whole], {}, NOW_S)
    assert all(replanner.decide([whole, a_little_better], {}, NOW_S).why == "kept" for _ in range(5))
    much_better = replace(a_little_better, stages=(replace(whole.stages[0], latency_ms=20.0),))
    assert replanner.decide([whole, much_better], {}, NOW_S).why == "better"


def test_a_plan_that_would_miss_the_deadline_is_left_at_once(whole: Way, split: Way) -> None:
    replanner = Replanner(patience=10)
    assert replanner.decide([whole, split], _known(FAST), NOW_S, deadline_ms=100).plan.variant == "split"
    decision = replanner.decide([whole, split], _known(SLOW), NOW_S, deadline_ms=100)
    assert (decision.plan.variant, decision.why) == ("whole", "deadline")
    assert decision.in_time > 0.95


def test_a_deadline_prefers_sure_plans_over_fast_ones(whole: Way, split: Way) -> None:
    """The link is fast on average, but nobody has seen it for long: the deadline is safe on the device alone."""
    steady = replace(whole, stages=(replace(whole.stages[0], latency_ms=40.0),))
    unknown = {HOP: LinkEstimate(FAST)}
    assert Replanner().decide([steady, split], unknown, NOW_S).plan.variant == "split"
    guess = {HOP: LinkEstimate(Link(4, 15))}
    by_deadline = Replanner().decide([steady, split], guess, NOW_S, deadline_ms=60)
    assert by_deadline.plan.variant == "whole"
    assert by_deadline.in_time > 0.95


def test_without_a_sure_plan_the_likeliest_is_taken(whole: Way, split: Way) -> None:
    decision = Replanner().decide([whole, split], _known(SLOW), NOW_S, deadline_ms=20)
    assert decision.plan.variant == "whole"
    assert decision.in_time < 0.05


def test_quality_may_come_before_speed(whole: Way, split: Way) -> None:
    """At 2 Mbit/s the finest rate takes 40 ms more than the coarsest, and the deadline allows it."""
    links = _known(Link(2, 10))
    only_split = [split]
    by_cost = Replanner().decide(only_split, links, NOW_S, deadline_ms=200)
    by_quality = Replanner(prefer="quality").decide(only_split, links, NOW_S, deadline_ms=200)
    assert (by_cost.plan.rates, by_quality.plan.rates) == ((2,), (0,))
    tight = Replanner(prefer="quality").decide(only_split, links, NOW_S, deadline_ms=55)
    assert tight.plan.rates == (1,)


def test_a_plan_that_is_no_longer_possible_is_left_at_once(whole: Way, split: Way) -> None:
    replanner = Replanner(patience=10)
    replanner.decide([whole, split], _known(FAST), NOW_S)
    decision = replanner.decide([whole, split], {}, NOW_S)
    assert (decision.plan.variant, decision.why) == ("whole", "gone")


def test_a_link_that_is_down_is_not_planned_with(whole: Way, split: Way) -> None:
    replanner, links = Replanner(patience=3), _known(FAST)
    assert replanner.decide([whole, split], links, NOW_S).plan.variant == "split"
    links[HOP].observe(20_000, 400.0, NOW_S, unfinished=True)
    decision = replanner.decide([whole, split], links, NOW_S)
    assert (decision.plan.variant, decision.why) == ("whole", "down")
    links[HOP].observe(500, 5.04, NOW_S + 0.5)
    assert replanner.decide([whole, split], links, NOW_S + 0.5).plan.variant == "split"


def test_limits_hold_at_run_time_too(whole: Way, split: Way) -> None:
    limits = PlanLimits(drop=0.1)
    assert Replanner(limits=limits).decide([whole, split], _known(FAST), NOW_S).plan.variant == "whole"
    with pytest.raises(PlanError, match="drop"):
        Replanner(limits=limits).decide([split], _known(FAST), NOW_S)


def test_the_same_history_gives_the_same_decisions(whole: Way, split: Way) -> None:
    def run() -> list[tuple[str, str]]:
        replanner, estimate = Replanner(), LinkEstimate(Link(10, 20))
        found = []
        for index in range(60):
            link = FAST if (index // 15) % 2 else SLOW
            estimate.observe(1_000, link.rtt_ms + link.transfer_ms(1_000), index * 0.2)
            decision = replanner.decide([whole, split], {HOP: estimate}, index * 0.2, deadline_ms=80)
            found.append((decision.plan.variant, decision.why))
        return found

    assert run() == run()
    # Each change of the link is followed by at most two changes of plan.
    assert sum(why not in ("kept",) for _, why in run()) <= 8

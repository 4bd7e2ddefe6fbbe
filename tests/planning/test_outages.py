"""What a link estimate and the replanner make of answers that do not come."""

from __future__ import annotations

import math

import pytest

from edgekit.planning.estimate import LinkEstimate
from edgekit.planning.link import Link
from edgekit.planning.plan import Crossing, Hop, RateCost, StageCost, Way
from edgekit.planning.replan import Replanner

LINK = Link(10.0, 20.0)
HOP: Hop = ("device", "edge")
SIZE = 5000.0


def took_ms(size_bytes: float, link: Link = LINK) -> float:
    return link.rtt_ms + link.transfer_ms(size_bytes)


def known(now_s: float = 2.0) -> LinkEstimate:
    """After ten answers on a link of 10 Mbit/s and 20 ms, the last one at `now_s`."""
    estimate = LinkEstimate(LINK)
    for index in range(10):
        estimate.observe(SIZE, took_ms(SIZE), now_s - 0.2 * (9 - index))
    return estimate


def expected_ms(estimate: LinkEstimate) -> float:
    return took_ms(SIZE, estimate.link)


def test_an_answer_as_usual_after_an_outage_brings_back_what_was_known() -> None:
    estimate = known()
    estimate.observe(SIZE, 200.0, 2.5, unfinished=True)
    assert estimate.is_down(2.5)
    assert expected_ms(estimate) > 100
    estimate.observe(1000.0, took_ms(1000.0), 4.0)
    assert not estimate.is_down(4.0)
    assert expected_ms(estimate) == pytest.approx(took_ms(SIZE), rel=0.05)


def test_an_answer_held_up_by_the_outage_only_says_that_it_is_over() -> None:
    estimate = known()
    estimate.observe(SIZE, 200.0, 2.5, unfinished=True)
    slow = expected_ms(estimate)
    estimate.observe(1000.0, 900.0, 4.0)
    assert expected_ms(estimate) == slow
    assert estimate.is_down(4.0)
    assert estimate.wants_probe(4.0)
    estimate.probing(4.0)
    assert not estimate.wants_probe(4.0)
    estimate.observe(1000.0, 950.0, 4.01)  # sent before the news came, too
    assert estimate.is_down(4.01)
    estimate.observe(1000.0, took_ms(1000.0), 4.03)
    assert expected_ms(estimate) == pytest.approx(took_ms(SIZE), rel=0.05)


def test_a_link_that_has_become_slow_is_believed_when_a_second_answer_is_late() -> None:
    estimate, slow = known(), Link(0.2, 20.0)
    estimate.observe(SIZE, 150.0, 2.5, unfinished=True)
    estimate.observe(SIZE, took_ms(SIZE, slow), 3.0)
    estimate.observe(SIZE, took_ms(SIZE, slow), 3.6)
    assert not estimate.is_down(3.6)
    assert expected_ms(estimate) == pytest.approx(took_ms(SIZE, slow), rel=0.2)


def test_small_answers_do_not_excuse_a_second_miss_of_large_ones() -> None:
    """Up, but too slow for what is sent: after one more try the estimate stays slow."""
    estimate = known()
    large = 60_000.0
    estimate.observe(large, 500.0, 2.5, unfinished=True)
    estimate.observe(500.0, took_ms(500.0), 3.0)
    assert not estimate.is_down(3.0)
    estimate.observe(large, 500.0, 3.6, unfinished=True)
    assert not estimate.is_down(3.6)
    estimate.observe(500.0, took_ms(500.0), 4.0)
    assert took_ms(large, estimate.link) > 300


def test_silence_is_probed_sooner_at_first_and_not_for_ever() -> None:
    estimate = known()
    assert estimate.probe_at_s == pytest.approx(3.0)
    estimate.observe(SIZE, 200.0, 2.5, unfinished=True)
    gaps = []
    for _ in range(5):
        due = estimate.probe_at_s
        gaps.append(due - max(2.5, estimate._probed_s))
        estimate.probing(due)
    assert gaps == pytest.approx([0.25, 0.5, 1.0, 1.0, 1.0])
    assert not estimate.is_down(2.5 + 60)


def test_an_answer_is_overdue_beyond_what_is_usual_but_not_by_a_hair() -> None:
    estimate = known()
    overdue = estimate.overdue_ms(SIZE, 2.0)
    assert took_ms(SIZE) + 10 <= overdue < 3 * took_ms(SIZE)
    assert estimate.overdue_ms(SIZE, 12.0) > overdue


LOCAL = Way("whole", (StageCost("main", "device", 60.0),))
SPLIT = Way(
    "split",
    (StageCost("head", "device", 10.0), StageCost("tail", "edge", 4.0)),
    (Crossing("codec", HOP, (RateCost(SIZE, 0.1),)),),
)


def test_the_plan_leaves_a_silent_link_at_once_and_comes_back_with_it() -> None:
    replanner, estimate = Replanner(), known()
    first = replanner.decide((LOCAL, SPLIT), {HOP: estimate}, 2.0, 300.0)
    assert first.plan.variant == "split"
    assert math.isfinite(first.overdue_ms)
    estimate.observe(SIZE, 200.0, 2.5, unfinished=True)
    down = replanner.decide((LOCAL, SPLIT), {HOP: estimate}, 2.6, 300.0)
    assert (down.plan.variant, down.why, down.overdue_ms) == ("whole", "down", math.inf)
    estimate.observe(1000.0, took_ms(1000.0), 4.0)
    back = replanner.decide((LOCAL, SPLIT), {HOP: estimate}, 4.1, 300.0)
    assert (back.plan.variant, back.why) == ("split", "kept")


def test_a_silent_link_is_tried_where_there_is_no_other_way() -> None:
    replanner, estimate = Replanner(), known()
    estimate.observe(SIZE, 200.0, 2.5, unfinished=True)
    assert replanner.decide((SPLIT,), {HOP: estimate}, 2.6, 300.0).plan.variant == "split"

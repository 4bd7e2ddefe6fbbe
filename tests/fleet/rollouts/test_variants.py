"""The choice for one device: against plain enumeration, within limits, and steady under a link that swings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import PlanError
from edgekit.fleet.rollouts.variants import choose_variant, links_of, scaled
from edgekit.planning.choose import plans
from edgekit.planning.link import Link
from edgekit.planning.plan import Crossing, PlanLimits, RateCost, StageCost, Way

WHOLE = Way("whole", (StageCost("main", "device", 30.0, 300.0),))
RATES = (RateCost(10_000, 0.0), RateCost(1_000, 0.8), RateCost(100, 5.0))
SPLIT = Way(
    "split",
    (StageCost("head", "device", 4.0, 40.0), StageCost("tail", "edge", 2.0)),
    (Crossing("code", ("device", "edge"), RATES, 0.5, 0.2),),
    answer_bytes=400,
)
WAYS = (WHOLE, SPLIT)
LIMITS = PlanLimits(drop=1.0)
LINKS = st.builds(Link, st.floats(0.05, 1000), st.floats(0, 400), st.floats(0, 0.3))


def test_without_a_link_it_stays_on_the_device() -> None:
    chosen = choose_variant(WAYS, None, None, LIMITS)
    assert chosen.best.plan.variant == "whole"
    assert [one.plan.variant for one in chosen.rated] == ["whole"]
    assert chosen.why.endswith("nothing else can run within the limits")


@given(LINKS, st.floats(1, 10), st.floats(1, 10))
def test_it_is_the_cheapest_of_all_within_the_limits(usual: Link, slower: float, longer: float) -> None:
    slow = Link(usual.bandwidth_mbps / slower, usual.rtt_ms * longer, usual.loss)
    chosen = choose_variant(WAYS, usual, slow, LIMITS)
    both = zip(plans(WAYS, links_of(usual)), plans(WAYS, links_of(slow)), strict=True)
    least = min(0.5 * (a.latency_ms + b.latency_ms) for a, b in both if a.drop <= 1.0)
    assert chosen.best.cost_ms == pytest.approx(least)
    assert chosen.best.plan.drop <= 1.0


def test_each_variant_is_shown_and_what_breaks_a_limit_comes_last() -> None:
    lossy = Way("lossy", SPLIT.stages, SPLIT.crossings, 400, drop=9.0)
    chosen = choose_variant((WHOLE, SPLIT, lossy), Link(100, 2), Link(50, 4), LIMITS)
    assert [one.plan.variant for one in chosen.rated] == ["split", "whole", "lossy"]
    assert [one.broken for one in chosen.rated] == [(), (), ("drop",)]


@pytest.mark.parametrize(("rtt_ms", "taken"), [(20.0, "split"), (23.0, "whole"), (24.5, "whole")])
def test_another_plan_has_to_be_faster_by_a_margin(rtt_ms: float, taken: str) -> None:
    link = Link(1000.0, rtt_ms)
    chosen = choose_variant(WAYS, link, link, LIMITS, current=("whole", 0))
    assert chosen.best.plan.variant == taken
    assert chosen.kept == (rtt_ms == 23.0)
    assert ("not faster by enough" in chosen.why) == chosen.kept


def test_a_plan_that_is_better_only_while_the_link_is_good_does_not_take_over() -> None:
    chosen = choose_variant(WAYS, Link(100, 2), Link(2, 60), LIMITS, current=("whole", 0))
    assert chosen.best.plan.variant == "whole"


def test_a_plan_that_is_not_allowed_any_more_is_left_at_once() -> None:
    chosen = choose_variant(WAYS, Link(100, 2), Link(100, 2), LIMITS, current=("split", 2))
    assert (chosen.best.plan.variant, chosen.kept) == ("split", False) and chosen.best.rate < 2


@given(st.lists(LINKS, min_size=2, max_size=12))
def test_the_same_link_never_changes_the_plan_twice(links: list[Link]) -> None:
    current = None
    for link in links:
        first = choose_variant(WAYS, link, link, LIMITS, current=current)
        current = (first.best.plan.variant, first.best.rate)
        again = choose_variant(WAYS, link, link, LIMITS, current=current)
        assert (again.best.plan.variant, again.best.rate) == current


def test_a_limit_that_nothing_meets_is_named() -> None:
    with pytest.raises(PlanError) as caught:
        choose_variant((Way("lossy", WHOLE.stages, drop=3.0),), None, None, LIMITS)
    assert caught.value.binding == "drop"


def test_a_slow_device_computes_longer_and_its_server_does_not() -> None:
    whole, split = scaled(WAYS, 3.0)
    assert whole.stages[0].latency_ms == pytest.approx(90)
    assert split.stages[0].latency_ms == pytest.approx(12) and split.stages[1].latency_ms == 2.0
    assert split.crossings[0].encode_ms == pytest.approx(1.5) and split.crossings[0].decode_ms == 0.2
    assert scaled(WAYS, 1.0) == WAYS

from __future__ import annotations

from itertools import pairwise

import pytest

from edgekit.errors import PlanError
from edgekit.planning.fit import Fitter
from edgekit.planning.plan import Plan, PlanLimits


def plan(variant: str, latency_ms: float, drop: float, energy_mj: float = 0.0) -> Plan:
    return Plan(variant, (), latency_ms, latency_ms, 0.0, energy_mj, 0.0, drop, 0, ("device",))


def plans(scale: float = 1.0) -> list[Plan]:
    """Ten, six and four milliseconds on a machine that is `scale` times as slow as usual."""
    rows = (("whole", 10.0, 0.0, 30.0), ("width-75", 6.0, 0.5, 18.0), ("width-50", 4.0, 1.5, 12.0))
    return [plan(name, scale * ms, drop, scale * mj) for name, ms, drop, mj in rows]


@pytest.mark.parametrize(
    ("budget", "variant"), [(None, "whole"), (12.0, "whole"), (9.0, "width-75"), (5.0, "width-50")]
)
def test_what_loses_least_within_the_budget_is_taken(budget: float | None, variant: str) -> None:
    assert Fitter().decide(plans(), PlanLimits(latency_ms=budget)).plan.variant == variant


def test_the_note_says_what_would_have_lost_less_and_why_not() -> None:
    assert Fitter().decide(plans(), PlanLimits()).note == ""
    fitted = Fitter().decide(plans(), PlanLimits(latency_ms=7.0))
    assert fitted.note == "width-75 instead of whole, which would take 10 ms of 7 allowed"


def test_a_budget_that_nothing_meets_runs_the_nearest_and_says_so() -> None:
    fitted = Fitter().decide(plans(), PlanLimits(latency_ms=1.0))
    assert (fitted.plan.variant, fitted.fits) == ("width-50", False)
    assert "4 ms at best, allowed 1" in fitted.note and "width-50 is the nearest" in fitted.note


def test_what_does_not_fit_any_more_is_left_at_once() -> None:
    fitter, limits = Fitter(), PlanLimits(latency_ms=11.0)
    assert fitter.decide(plans(), limits).plan.variant == "whole"
    left = fitter.decide(plans(1.2), limits)
    assert (left.plan.variant, left.why) == ("width-75", "budget")


def test_what_fits_again_comes_back_only_with_room_and_patience() -> None:
    fitter, limits = Fitter(margin=0.1, patience=3), PlanLimits(latency_ms=11.0)
    fitter.decide(plans(1.2), limits)
    just = [fitter.decide(plans(1.05), limits).plan.variant for _ in range(6)]  # 10.5 ms: fits, without room
    assert just == ["width-75"] * 6
    roomy = [fitter.decide(plans(0.9), limits) for _ in range(4)]
    assert [fitted.plan.variant for fitted in roomy] == ["width-75", "width-75", "whole", "whole"]
    assert roomy[2].why == "better"


def test_a_latency_that_wavers_around_the_budget_changes_the_plan_once() -> None:
    fitter, limits = Fitter(), PlanLimits(latency_ms=10.2)
    taken = [fitter.decide(plans(scale), limits).plan.variant for scale in (1.0, 1.05, 0.98) * 10]
    assert sum(a != b for a, b in pairwise(taken)) == 1


def test_a_low_battery_takes_what_spends_least_and_gives_it_back() -> None:
    fitter = Fitter()
    assert fitter.decide(plans(), PlanLimits()).plan.variant == "whole"
    saving = fitter.decide(plans(), PlanLimits(), saving=True)
    assert (saving.plan.variant, saving.why) == ("width-50", "battery")
    assert saving.note == "width-50 instead of whole: the battery is low"
    assert fitter.decide(plans(), PlanLimits()).why == "battery"


def test_saving_keeps_the_limit_on_what_may_be_lost() -> None:
    assert Fitter().decide(plans(), PlanLimits(drop=1.0), saving=True).plan.variant == "width-75"


def test_without_a_power_model_computing_less_saves() -> None:
    bare = [plan(p.variant, p.latency_ms, p.drop) for p in plans()]
    assert Fitter().decide(bare, PlanLimits(), saving=True).plan.variant == "width-50"


def test_no_plan_at_all_is_an_error() -> None:
    with pytest.raises(PlanError, match="no way can run"):
        Fitter().decide([], PlanLimits())

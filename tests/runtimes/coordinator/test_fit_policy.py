"""The policy fit: a slow link, a low battery or a budget picks a smaller variant, and the answer says so."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Variant
from edgekit.devices.battery import Battery
from edgekit.errors import UsageError
from edgekit.planning.estimate import LinkEstimate
from edgekit.planning.link import Link
from edgekit.planning.plan import Crossing, PlanLimits, Power, RateCost, StageCost, Way
from edgekit.runtimes.coordinator.coordinator import Coordinator
from edgekit.runtimes.coordinator.policies import Situation, make_policy
from tests.runtimes.coordinator.conftest import make_bundle

EDGE = ("device", "edge")
POWER = Power(compute_w=3.0, radio_w=1.3, idle_w=0.0)


def local(name: str, ms: float, drop: float) -> Way:
    return Way(name, (StageCost(name, "device", ms, energy_mj=3 * ms),), drop=drop)


WHOLE, NARROW = local("whole", 80.0, 0.6), local("width-50", 40.0, 1.5)
REMOTE = Way(
    "offload", (StageCost("all", "edge", 3.0),), (Crossing("image", EDGE, (RateCost(20_000, 0.0),)),), answer_bytes=40
)


def situation(link: Link = Link(10, 20), ways=(WHOLE, NARROW, REMOTE), **settings) -> Situation:
    return Situation(
        ways=ways,
        estimates={EDGE: LinkEstimate(link)},
        links={EDGE: link},
        refusals=settings.pop("refusals", {}),
        local="whole",
        power=POWER,
        **settings,
    )


def variant(policy, given: Situation) -> str:
    return policy.choose(given).legs[0].variant


def test_a_slow_link_and_a_budget_pick_a_smaller_variant_of_the_same_bundle() -> None:
    limits = PlanLimits(latency_ms=60.0)
    assert variant(make_policy("fit"), situation(Link(50, 5), limits=limits)) == "offload"
    slow = make_policy("fit").choose(situation(Link(0.5, 100), limits=limits))
    assert (slow.legs[0].variant, slow.degraded) == ("width-50", False)
    assert "width-50 instead of offload" in slow.note and "60 allowed" in slow.note


def test_a_deadline_shorter_than_the_budget_counts() -> None:
    given = situation(ways=(WHOLE, NARROW), limits=PlanLimits(latency_ms=100.0), deadline_ms=50.0)
    assert variant(make_policy("fit"), given) == "width-50"


def test_a_low_battery_picks_what_spends_least_until_it_is_charged_well() -> None:
    policy = make_policy("fit")
    taken = [
        variant(policy, situation(ways=(WHOLE, NARROW), battery=Battery(share))) for share in (0.5, 0.15, 0.25, 0.35)
    ]
    assert taken == ["whole", "width-50", "width-50", "whole"]


def test_a_budget_that_nothing_meets_is_degraded_and_names_the_nearest() -> None:
    chosen = make_policy("fit").choose(situation(ways=(WHOLE, NARROW), limits=PlanLimits(latency_ms=1.0)))
    assert (chosen.legs[0].variant, chosen.degraded) == ("width-50", True)
    assert "width-50 is the nearest" in chosen.reason


def test_a_node_that_may_not_be_asked_leaves_the_best_of_the_device() -> None:
    assert variant(make_policy("fit"), situation(Link(50, 5), refusals={"offload": "edge: down"})) == "whole"
    nothing = make_policy("fit").choose(situation(ways=(REMOTE,), refusals={"offload": "edge: down"}))
    assert (nothing.degraded, nothing.reason) == (True, "edge: down")


def test_a_link_that_is_down_is_not_waited_for() -> None:
    given = situation(Link(50, 5))
    estimate = given.estimates[EDGE]
    for second in range(4):
        estimate.observe(20_000, 30_000.0, float(second), unfinished=True)
    assert estimate.is_down(4.0)
    assert variant(make_policy("fit"), situation(Link(50, 5), now_s=4.0)) == "offload"
    given = Situation(given.ways, given.estimates, given.links, {}, "whole", power=POWER, now_s=4.0)
    assert variant(make_policy("fit"), given) == "whole"


@pytest.mark.parametrize("text", ["fit@1", "fit:whole"])
def test_fit_chooses_variant_and_rate_itself(text: str) -> None:
    with pytest.raises(UsageError, match="fit chooses"):
        make_policy(text)


def test_the_coordinator_runs_it_and_the_answer_says_so(tmp_path) -> None:
    """`smaller` runs the same part and states that it loses a point."""
    path = make_bundle(tmp_path / "net.edgekit")
    with Bundle.open(path) as bundle:
        smaller = Variant(name="smaller", parts=("whole",), drop=1.0)
        bundle.manifest = bundle.manifest.model_copy(update={"variants": (*bundle.manifest.variants, smaller)})
        feeds = {"x": np.ones((1, 6), np.float32)}
        with Coordinator(bundle, policy="fit", battery=lambda: None) as coordinator:
            best = coordinator.ask(feeds)
        with Coordinator(bundle, policy="local:smaller") as coordinator:
            named = coordinator.ask(feeds)
        with Coordinator(bundle, policy="fit", limits=PlanLimits(latency_ms=1e-6)) as coordinator:
            late = coordinator.ask(feeds)
    assert (best.variant, best.choice, best.degraded) == ("local", "", False)
    assert named.variant == "smaller"
    assert late.degraded and "nearest" in late.reason
    assert late.to_json()["choice"] == ""

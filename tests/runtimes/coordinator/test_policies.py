from __future__ import annotations

import pytest

from edgekit.errors import PlanError, UnknownNameError, UsageError
from edgekit.planning.estimate import LinkEstimate
from edgekit.planning.link import Link
from edgekit.planning.plan import Crossing, PlanLimits, RateCost, StageCost, Way
from edgekit.runtimes.coordinator.policies import POLICIES, Situation, make_policy

RATES = (RateCost(20_000, 0.0), RateCost(5_000, 0.4), RateCost(1_000, 1.5))
EDGE, CLOUD = ("device", "edge"), ("device", "cloud")


def way(name: str, stages: dict[str, tuple[str, float]], *hops, **figures) -> Way:
    crossings = tuple(Crossing("codec", hop, RATES) for hop in hops)
    costs = tuple(StageCost(part, tier, latency_ms) for part, (tier, latency_ms) in stages.items())
    return Way(name, costs, crossings, 40, **figures)


LOCAL = way("local", {"whole": ("device", 80.0)})
SPLIT = way("split", {"head": ("device", 10.0), "rest": ("edge", 2.0)}, EDGE)
DEEP = way("deep", {"head": ("device", 10.0), "rest": ("cloud", 1.0)}, CLOUD)
OFFLOAD = way("offload", {"all": ("edge", 3.0)}, EDGE)
THREE = way("three", {"head": ("device", 10.0), "m": ("edge", 1.0), "t": ("cloud", 1.0)}, EDGE, ("edge", "cloud"))
EARLY = way(
    "early", {"head": ("device", 10.0), "rest": ("edge", 2.0)}, EDGE, has_exit=True, exit_ms=1.0, local_share=0.4
)
LATE = way(
    "late", {"head": ("device", 10.0), "rest": ("cloud", 1.0)}, CLOUD, has_exit=True, exit_ms=1.0, local_share=0.4
)
ALL = (LOCAL, SPLIT, DEEP, OFFLOAD, THREE, EARLY, LATE)


def situation(ways=ALL, link: Link = Link(10, 20), refusals=None, **settings) -> Situation:
    links = {EDGE: link, CLOUD: link, ("edge", "cloud"): Link(100, 10)}
    return Situation(
        ways=ways,
        estimates={hop: LinkEstimate(given) for hop, given in links.items()},
        links=links,
        refusals=refusals or {},
        local="local" if LOCAL in ways else None,
        **settings,
    )


@pytest.mark.parametrize(
    ("policy", "variants"),
    [
        ("local", ["local"]),
        ("offload", ["offload"]),
        ("split:split", ["split"]),
        ("split:deep", ["deep"]),
        ("three-tier", ["three"]),
        ("cascade", ["early", "late"]),
    ],
)
def test_a_policy_takes_its_own_kind_of_way(policy: str, variants: list[str]) -> None:
    chosen = make_policy(policy).choose(situation())
    assert [leg.variant for leg in chosen.legs] == variants
    assert (chosen.degraded, chosen.policy) == (False, policy)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_chooses_something_that_is_there(name: str) -> None:
    policy = make_policy(name)
    policy.check(ALL)
    legs = policy.choose(situation()).legs
    known = {entry.variant: len(entry.crossings) for entry in ALL}
    assert legs and all(len(leg.rates) == known[leg.variant] for leg in legs)


def test_without_a_rate_the_link_decides() -> None:
    limits = PlanLimits(drop=2.0)
    fast = make_policy("split:split").choose(situation(link=Link(1000, 1), limits=limits))
    slow = make_policy("split:split").choose(situation(link=Link(0.5, 50), limits=limits))
    assert fast.legs[0].rates == slow.legs[0].rates == (2,)  # the least latency is always the fewest bytes
    strict = make_policy("split:split").choose(situation(link=Link(0.5, 50), limits=PlanLimits(drop=0.5)))
    assert strict.legs[0].rates == (1,)


def test_a_fixed_rate_is_kept() -> None:
    assert make_policy("split:split@0").choose(situation(link=Link(0.1, 50))).legs[0].rates == (0,)


def test_a_node_that_may_not_be_asked_means_local_and_degraded() -> None:
    chosen = make_policy("split:split").choose(situation(refusals={"split": "edge: left alone"}))
    assert (chosen.legs[0].variant, chosen.degraded, chosen.reason) == ("local", True, "edge: left alone")


def test_split_takes_the_other_node_where_one_may_not_be_asked() -> None:
    chosen = make_policy("split").choose(situation(refusals={"split": "edge: left alone"}))
    assert (chosen.legs[0].variant, chosen.degraded) == ("deep", False)


def test_a_cascade_without_the_edge_goes_to_the_cloud() -> None:
    refusals = dict.fromkeys(("split", "offload", "three", "early"), "edge: down")
    assert [leg.variant for leg in make_policy("cascade").choose(situation(refusals=refusals)).legs] == ["late"]


def test_auto_follows_the_link() -> None:
    auto = make_policy("auto")
    assert auto.choose(situation(link=Link(100, 5))).legs[0].variant != "local"
    fresh = make_policy("auto")
    assert fresh.choose(situation(link=Link(0.01, 500))).legs[0].variant == "local"


def test_auto_is_degraded_only_where_a_refused_way_would_have_been_better() -> None:
    refusals = {entry.variant: "down" for entry in ALL if entry is not LOCAL}
    good = make_policy("auto").choose(situation(link=Link(100, 5), refusals=refusals))
    assert (good.legs[0].variant, good.degraded, good.reason) == ("local", True, "down")
    bad = make_policy("auto").choose(situation(link=Link(0.01, 500), refusals=refusals))
    assert (bad.legs[0].variant, bad.degraded) == ("local", False)


def test_auto_keeps_the_limit_on_drop_and_gives_up_latency_first() -> None:
    chosen = make_policy("auto").choose(
        situation(link=Link(0.5, 50), limits=PlanLimits(drop=0.1, latency_ms=1.0), deadline_ms=200.0)
    )
    assert chosen.legs[0].variant == "local"


def test_nothing_to_run_and_no_local_variant_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match="no variant runs on the device alone"):
        make_policy("split").choose(situation(ways=()))


@pytest.mark.parametrize(
    ("policy", "ways"),
    [("three-tier", (LOCAL, SPLIT)), ("offload", (LOCAL,)), ("local", (SPLIT,)), ("split:deep", (SPLIT,))],
)
def test_a_policy_without_a_way_says_what_there_is(policy: str, ways) -> None:
    with pytest.raises(PlanError, match=ways[0].variant):
        make_policy(policy).check(ways)


def test_a_cascade_needs_an_exit_and_else_names_what_is_possible() -> None:
    with pytest.raises(PlanError, match="no early exit") as refused:
        make_policy("cascade").check((LOCAL, SPLIT, DEEP, THREE))
    assert "possible here: local, split, three-tier, auto, fit;" in refused.value.hint
    make_policy("cascade").check((LOCAL, SPLIT, EARLY))


def test_a_policy_without_a_way_names_those_that_have_one() -> None:
    with pytest.raises(PlanError) as refused:
        make_policy("offload").check((LOCAL,))
    assert "possible here: local, auto, fit;" in refused.value.hint


def test_a_rate_off_the_ladder_is_refused_before_the_first_request() -> None:
    with pytest.raises(UsageError, match="allowed 0 to 2"):
        make_policy("split@3").check(ALL)


@pytest.mark.parametrize("text", ["spilt", "", "split@x", "split:", "SPLIT"])
def test_an_unknown_policy_names_the_known_ones(text: str) -> None:
    with pytest.raises(UnknownNameError, match="cascade"):
        make_policy(text)


@pytest.mark.parametrize("text", ["auto@2", "auto:split"])
def test_auto_takes_neither_rate_nor_variant(text: str) -> None:
    with pytest.raises(UsageError):
        make_policy(text)

"""On ways modelled on EfficientNet-Lite0: a Raspberry Pi 4, a server, features of a few kilobytes, JPEG that loses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from edgekit.errors import PlanError, UnknownNameError, UsageError
from edgekit.planning.comparison import POLICIES, SINGLE, Comparison, Setting, compare
from edgekit.planning.link import Link
from edgekit.planning.named_traces import TRACES, trace_named
from edgekit.planning.plan import Crossing, Hop, Power, RateCost, StageCost, Tier, Way, evaluate
from edgekit.planning.policies import Fixed, Neurosurgeon, Oracle, choices
from edgekit.planning.simulate import Breaker, Policy, Run, Seen, Workload, fastest_local, simulate
from edgekit.planning.traces import Conditions, Trace
from edgekit.planning.world import Choice, Dice, World

BELOW: Hop = ("device", "edge")
BETWEEN: Hop = ("edge", "cloud")
ABOVE = {BETWEEN: Link(1000.0, 10.0)}
POWER = Power(3.6, 1.3, 0.1)
WATTS = 3.6


def stage(part: str, tier: Tier, latency_ms: float) -> StageCost:
    return StageCost(part, tier, latency_ms, WATTS * latency_ms if tier == "device" else 0.0)


def ladder(*rungs: tuple[float, float]) -> tuple[RateCost, ...]:
    return tuple(RateCost(size, drop, 1 - drop / 100) for size, drop in rungs)


EARLY = ladder((4200, 0.2), (2500, 0.5), (1900, 0.9), (1100, 2.5))
LATE = ladder((2500, 0.2), (1400, 0.5), (900, 0.9), (600, 2.5))
WHOLE = Way("whole", (stage("main", "device", 45),), drop=0.1)
SPLIT = Way("split", (stage("head", "device", 15), stage("tail", "edge", 4)),
            (Crossing("early", BELOW, EARLY, 1.2, 0.6),), 4000, 0.1)  # fmt: skip
DEEP = Way("deep", (stage("head2", "device", 33), stage("tail2", "edge", 2)),
           (Crossing("late", BELOW, LATE, 0.6, 0.4),), 4000, 0.1)  # fmt: skip
CASCADE = Way(
    "cascade", SPLIT.stages, SPLIT.crossings, 4000, 0.1, has_exit=True, exit_ms=1.5, local_share=0.3, exit_drop=0.1
)
PICTURE = Way("picture", (stage("model", "edge", 6),),
              (Crossing("image", BELOW, ladder((60000, 0), (21000, 17), (9000, 40)), 9, 3),), 4000)  # fmt: skip
THREE = Way(
    "three",
    (stage("head", "device", 15), stage("middle", "edge", 3), stage("end", "cloud", 2)),
    (Crossing("early", BELOW, EARLY[:2], 1.2, 0.6), Crossing("late", BETWEEN, LATE[:2], 0.3, 0.3)),
    4000,
    0.1,
)
WAYS = (WHOLE, SPLIT, DEEP, CASCADE, PICTURE, THREE)
RAW = {"early": 80 * 14 * 14 * 4.0, "late": 192 * 7 * 7 * 4.0, "image": 224 * 224 * 3.0}
TEN = Trace.constant(Conditions(10.0, 40.0), "ten")


def setting(**changes: object) -> Setting:
    given = {"workload": Workload(), "max_drop": 1.0, "above": ABOVE, "power": POWER}
    return Setting(**{"ways": WAYS, "image_codecs": frozenset({"image"}), "raw_bytes": RAW, **given, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def table() -> Comparison:
    return compare(setting(), [trace_named(name) for name in TRACES])


def run(policy: Policy, trace: Trace = TEN, **changes: object) -> Run:
    workload = Workload(**{"requests": 30, **changes})  # type: ignore[arg-type]
    return simulate(policy, trace, workload, fallback=WHOLE, above=ABOVE, power=POWER)


# The goals


@pytest.mark.parametrize("trace", TRACES)
def test_edgekit_stays_within_a_tenth_of_the_oracle(table: Comparison, trace: str) -> None:
    assert table.rows[trace]["edgekit"].regret <= 0.10


@pytest.mark.parametrize("trace", TRACES)
def test_edgekit_is_never_far_behind_the_best_single_policy(table: Comparison, trace: str) -> None:
    behind = table.behind_best_single(trace)
    assert behind is not None
    assert behind <= 0.05


@pytest.mark.parametrize("policy", ["local", "offload", "offload-jpeg", "neurosurgeon", "split", "cascade"])
def test_edgekit_is_ahead_over_all_traces(table: Comparison, policy: str) -> None:
    own, other = table.overall_ms("edgekit"), table.overall_ms(policy)
    assert own is not None
    assert other is not None
    assert own < other


def test_nobody_loses_an_answer_where_the_device_can_give_one(table: Comparison) -> None:
    assert all(row.run.lost == 0 for rows in table.rows.values() for row in rows.values())


@pytest.mark.parametrize("trace", TRACES)
def test_no_fixed_plan_beats_the_oracle_by_more_than_luck(table: Comparison, trace: str) -> None:
    """The oracle knows the trace and not the dice, so that luck can put another ahead by a little."""
    rows = table.rows[trace]
    assert all(rows[name].regret > -0.02 for name in SINGLE if rows[name].admissible)


# What one request costs


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.variant)
def test_on_a_steady_link_a_request_takes_what_the_plan_expects(way: Way) -> None:
    rates = (0,) * len(way.crossings)
    links = {BELOW: Link(10.0, 40.0), **ABOVE}
    world = World(TEN, ABOVE, POWER)
    plan = evaluate(way, rates, links, POWER)
    # What leaves at the exit is not encoded; the plan counts the encoder for every sample.
    spared_ms = way.local_share * sum(crossing.encode_ms for crossing in way.crossings)
    assert world.expected_ms(Choice(way, rates), 3.0) == pytest.approx(plan.latency_ms - spared_ms)
    attempt = world.attempt(Choice(way, rates), 3.0, Dice(exit=1.0))
    if not way.local_share:
        assert world.energy_mj(attempt, math.inf) == pytest.approx(plan.energy_mj)
        assert attempt.bytes_sent == plan.bytes_sent


def test_a_sample_that_leaves_at_the_exit_sends_nothing() -> None:
    attempt = World(TEN).attempt(Choice(CASCADE, (0,)), 0.0, Dice(exit=0.2))
    assert (attempt.exited, attempt.bytes_sent) == (True, 0)
    assert attempt.answer_s == pytest.approx(0.0165)


def test_bytes_take_their_turn_behind_those_sent_before() -> None:
    world = World(TEN)
    first = world.attempt(Choice(PICTURE, (0,)), 0.0, Dice())
    world.commit(first)
    second = world.attempt(Choice(PICTURE, (0,)), 0.0, Dice())
    assert second.up_free_s - first.up_free_s == pytest.approx(0.048)


def test_a_way_to_the_cloud_needs_the_link_between_the_servers() -> None:
    with pytest.raises(KeyError):
        World(TEN).attempt(Choice(THREE, (0, 0)), 0.0, Dice())


def test_a_lost_packet_costs_a_round_trip_and_jitter_its_share() -> None:
    lossy = World(Trace.constant(Conditions(10.0, 40.0, jitter_ms=5.0, loss=0.1)))
    choice = Choice(SPLIT, (0,))
    usual = lossy.attempt(choice, 0.0, Dice()).answer_s
    assert lossy.attempt(choice, 0.0, Dice(up_loss=0.0)).answer_s - usual == pytest.approx(0.04)
    assert lossy.attempt(choice, 0.0, Dice(up_jitter=1.0, down_jitter=-0.5)).answer_s - usual == pytest.approx(0.0025)


# The coordinator's rules

GAP = Trace("gap", (0.0, 1.0, 6.0), (Conditions(10.0, 20.0), Conditions(10.0, 20.0, up=False), Conditions(10.0, 20.0)),
            120.0)  # fmt: skip


def test_a_stalled_upload_is_answered_locally_at_the_deadline_and_marked() -> None:
    outcomes = run(Fixed("split", Choice(SPLIT, (0,))), GAP, rate_hz=2.0, margin_ms=8.0).outcomes
    stalled = [outcome for outcome in outcomes if 1.0 <= outcome.came_s < 6.0]
    hedged = [outcome for outcome in stalled if outcome.latency_ms > 100]
    assert all(outcome.degraded for outcome in stalled)
    assert all(outcome.latency_ms == pytest.approx(292.0) for outcome in hedged)
    assert all(outcome.drop == pytest.approx(WHOLE.drop) for outcome in stalled)
    assert not any(outcome.degraded for outcome in outcomes if outcome.came_s < 1.0 or outcome.came_s > 9.0)


def test_after_three_failures_the_circuit_opens_and_nothing_is_sent() -> None:
    outcomes = run(Fixed("split", Choice(SPLIT, (0,))), GAP, rate_hz=2.0).outcomes
    spared = [outcome for outcome in outcomes if outcome.degraded and outcome.bytes_sent == 0]
    assert spared
    assert all(outcome.latency_ms == pytest.approx(45.0) for outcome in spared)


def test_without_a_local_way_a_request_is_lost_at_its_deadline() -> None:
    found = simulate(Fixed("split", Choice(SPLIT, (0,))), GAP, Workload(requests=10, rate_hz=2.0))
    lost = [outcome for outcome in found.outcomes if outcome.lost]
    assert lost
    assert all(outcome.latency_ms == pytest.approx(300.0) for outcome in lost)


def test_a_local_way_slower_than_the_deadline_loses_its_answers() -> None:
    found = simulate(Fixed("local", Choice(WHOLE)), TEN, Workload(requests=3, deadline_ms=40.0), fallback=WHOLE)
    assert found.lost == 3


def test_a_remote_answer_that_comes_while_the_local_one_is_made_is_given() -> None:
    late = Trace.constant(Conditions(10.0, 230.0), "late")
    outcome = run(Fixed("split", Choice(SPLIT, (0,))), late, requests=1, deadline_ms=300.0).outcomes[0]
    assert not outcome.degraded
    assert 247.0 < outcome.latency_ms < 292.0
    assert outcome.energy_mj > WATTS * 45


def test_an_overdue_answer_is_hedged_before_the_deadline() -> None:
    outcome = run(Fixed("split", Choice(SPLIT, (0,), overdue_ms=60.0)), GAP, requests=3, rate_hz=1.0).outcomes[1]
    assert outcome.degraded
    assert outcome.latency_ms == pytest.approx(15 + 1.2 + 60 + 45)


def test_requests_wait_for_the_one_before_and_their_waiting_counts() -> None:
    found = run(Fixed("local", Choice(WHOLE)), rate_hz=100.0, requests=3)
    assert found.latencies_ms == pytest.approx([45.0, 80.0, 115.0])
    closed = run(Fixed("local", Choice(WHOLE)), rate_hz=None, think_ms=55.0, requests=3)
    assert [outcome.came_s for outcome in closed.outcomes] == pytest.approx([0.0, 0.1, 0.2])


def test_the_breaker_doubles_its_pause_until_a_success() -> None:
    breaker = Breaker(failures=2, first_s=1.0)
    breaker.failure(0.0)
    assert breaker.allows(0.0)
    breaker.failure(0.0)
    assert (breaker.allows(0.9), breaker.allows(1.0)) == (False, True)
    breaker.failure(1.0)
    assert (breaker.allows(2.9), breaker.allows(3.0)) == (False, True)
    breaker.success()
    breaker.failure(3.0)
    assert breaker.allows(3.0)


@dataclass
class _Pinging:
    """Stays local, and pings with every request."""

    name: str = "pinging"
    seen: list[Seen] = field(default_factory=list)

    def choose(self, now_s: float, world: World) -> Choice:
        return Choice(WHOLE)

    def observe(self, seen: Seen) -> None:
        self.seen.append(seen)

    def probe_bytes(self, now_s: float, choice: Choice) -> int:
        return 1000


def test_probes_are_told_when_they_return_or_have_taken_too_long() -> None:
    policy = _Pinging()
    found = run(policy, GAP, requests=18, rate_hz=2.0)
    times = [seen.at_s for seen in policy.seen]
    assert times == sorted(times)
    assert all(seen.probe for seen in policy.seen)
    held = [seen for seen in policy.seen if not seen.replied]
    assert held
    assert all(seen.network_ms == pytest.approx(1000.0) for seen in held)
    quick = [seen for seen in policy.seen if seen.replied and seen.at_s < 1.0]
    assert quick[0].network_ms == pytest.approx(20.0 + 8e-3 * 1064 / 10)
    assert found.probe_bytes == 18 * 1000
    assert found.energy_mj_mean > sum(outcome.energy_mj for outcome in found.outcomes) / 18


# The policies


def test_choices_keep_the_limit_and_leave_out_what_sends_more_for_nothing() -> None:
    names = [str(choice) for choice in choices(WAYS, 1.0)]
    assert names == ["whole", "split@2", "deep@2", "cascade@1", "picture@0", "three@0-1", "three@1-0"]
    assert [str(choice) for choice in choices([SPLIT], None)] == ["split@3"]


def test_neurosurgeon_follows_the_link_it_is_told() -> None:
    surgeon = Neurosurgeon([Choice(WHOLE), Choice(PICTURE, (0,))])
    world = World(Trace("two", (0.0, 5.0, 8.0), (Conditions(1.0, 60.0), Conditions(900.0, 1.0),
                                                  Conditions(900.0, 1.0, up=False)), 10.0))  # fmt: skip
    assert [str(surgeon.choose(now, world)) for now in (0.0, 6.0, 9.0)] == ["whole", "picture@0", "whole"]


def test_the_oracle_foresees_an_outage() -> None:
    oracle = Oracle([Choice(WHOLE), Choice(SPLIT, (0,))])
    fast = Trace("fast", (0.0, 1.0), (Conditions(100.0, 2.0), Conditions(100.0, 2.0, up=False)), 2.0)
    assert [str(oracle.choose(now, World(fast))) for now in (0.5, 0.99, 1.5)] == ["split@0", "whole", "whole"]


def test_edgekit_goes_back_up_soon_after_an_outage(table: Comparison) -> None:
    outcomes = table.rows["outages"]["edgekit"].run.outcomes
    trace = trace_named("outages")
    ends = [start for start, piece in zip(trace.time_s, trace.pieces, strict=True) if piece.up and start > 0]
    for end in ends:
        after = [outcome for outcome in outcomes if end <= outcome.came_s < end + 3.0]
        assert any(outcome.choice.way.crossings for outcome in after), f"nothing went up after {end} s"


def test_policies_without_a_way_are_named_and_left_out() -> None:
    found = compare(setting(ways=(WHOLE, SPLIT)), [TEN], ["local", "split", "cascade", "three-tier", "offload-jpeg"])
    assert set(found.rows["ten"]) == {"local", "split"}
    assert set(found.missing) == {"cascade", "three-tier", "offload-jpeg"}
    assert found.behind_best_single("ten") is None
    assert found.overall_ms("cascade") is None


def test_a_plan_that_never_answers_is_not_taken_for_its_quick_substitutes() -> None:
    slow = Trace.constant(Conditions(1.0, 40.0), "slow")
    raw = Way("raw", SPLIT.stages, (Crossing("plain", BELOW, (RateCost(60_000, 0.0),)),), 4000, 0.1)
    found = compare(setting(ways=(WHOLE, raw, SPLIT)), [slow], ["split"]).rows["slow"]["split"]
    hopeless = run(Fixed("split", Choice(raw, (0,))), slow, requests=360)
    assert hopeless.degraded == 360
    assert hopeless.mean_ms < found.run.mean_ms
    assert (found.detail, found.run.degraded) == ("split@2", 0)


def test_policies_that_answer_are_ahead_of_one_that_never_does() -> None:
    slow = Trace.constant(Conditions(1.0, 40.0), "slow")
    found = compare(setting(ways=(SPLIT, WHOLE, PICTURE)), [slow], ["split", "offload"])
    rows = found.rows["slow"]
    assert (rows["offload"].run.degraded, rows["split"].run.degraded) == (360, 0)
    assert rows["offload"].run.mean_ms < rows["split"].run.mean_ms
    assert found.best_single("slow") == "split"


def test_what_several_codecs_or_an_exit_leave_together_is_not_known() -> None:
    assert Choice(SPLIT, (1,)).agreement == pytest.approx(0.995)
    assert [Choice(THREE, (0, 1)).agreement, Choice(CASCADE, (1,)).agreement, Choice(WHOLE).agreement] == [None] * 3


def test_a_policy_beyond_the_limit_counts_for_no_comparison(table: Comparison) -> None:
    row = table.rows["steady-100"]["offload-jpeg"]
    assert (row.admissible, row.detail) == (False, "picture@1")
    assert table.best_single("steady-100") != "offload-jpeg"


def test_the_same_setting_gives_the_same_table(table: Comparison) -> None:
    again = compare(setting(), [trace_named("lte")], POLICIES)
    assert again.rows["lte"] == table.rows["lte"]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'split'"):
        compare(setting(), [TEN], ["splitt"])
    with pytest.raises(PlanError, match="keeps a drop"):
        compare(setting(ways=(WHOLE,), max_drop=0.05), [TEN])
    for changes in ({"requests": 0}, {"deadline_ms": 0.0}, {"rate_hz": 0.0}, {"think_ms": -1.0}):
        with pytest.raises(UsageError):
            Workload(**changes)  # type: ignore[arg-type]
    assert fastest_local([SPLIT]) is None

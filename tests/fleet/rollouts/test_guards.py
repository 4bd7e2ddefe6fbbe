"""Guards: how they are written, when they hold and break, and how seldom chance breaks one."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.fleet.rollouts.guards import METRICS, Verdict, figure, parse_guards, shown
from edgekit.fleet.telemetry.histogram import histogram_of
from edgekit.fleet.telemetry.seen import Seen


def judge(text: str, seen: Seen, others: Seen = Seen()) -> Verdict:
    (guard,) = parse_guards(text)
    return guard.judge(seen, others)


def latencies(*values: float) -> Seen:
    return Seen(answered=len(values), latency=histogram_of(values))


@pytest.mark.parametrize(
    ("text", "metric", "limit", "relative"),
    [
        ("agreement>=0.97", "agreement", 0.97, False),
        ("agreement >= 97%", "agreement", 0.97, False),
        ("errors<=0.1%", "errors", 0.001, False),
        ("p95<=80ms", "p95", 80.0, False),
        ("p99<=0.2s", "p99", 200.0, False),
        ("p50<=80", "p50", 80.0, False),
        ("energy<=1.5J", "energy", 1500.0, False),
        ("p95<=1.2x", "p95", 1.2, True),
        ("temperature<=75C", "temperature", 75.0, False),
        ("golden>=1", "golden", 1.0, False),
    ],
)
def test_guards_are_read_with_their_units(text: str, metric: str, limit: float, relative: bool) -> None:
    (guard,) = parse_guards(text)
    assert (guard.metric, guard.relative) == (metric, relative)
    assert guard.limit == pytest.approx(limit)
    assert parse_guards(guard.text) == (guard,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p95", "guard 'p95'"),
        ("p95<80ms", "guard 'p95<80ms'"),
        ("speed<=3", "allowed agreement, errors"),
        ("p95<=80%", "has the unit %, allowed none, ms, s, x"),
        ("errors<=3ms", "allowed none, %, x"),
        ("temperature<=1.2x", "allowed none, C"),
        ("golden>=0.9x", "has the unit x"),
        ("agreement<=0.9", "would hold what is bad"),
        ("p95>=80ms", "would hold what is bad"),
        ("errors<=101%", "more than all"),
        ("p95<=80ms,p95<=90ms", "a second time"),
        ("p95<=80ms;errors<=1%", "guard 'p95"),
        ("p95<=-1ms", "guard 'p95"),
        ("p95<=nanms", "guard 'p95"),
    ],
)
def test_what_is_no_guard_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_guards(text)


def test_absolute_and_relative_stand_side_by_side() -> None:
    assert len(parse_guards("p95<=80ms, p95<=1.2x,errors<=1%,")) == 3
    assert parse_guards("") == ()


@given(st.text(max_size=30))
def test_any_text_is_guards_or_a_usage_error(text: str) -> None:
    try:
        guards = parse_guards(text)
    except UsageError:
        return
    assert all(guard.metric in METRICS for guard in guards)


def test_nothing_seen_tells_nothing() -> None:
    for text in ("agreement>=0.9", "errors<=1%", "p95<=80ms", "energy<=5mJ", "temperature<=70C", "golden>=1"):
        verdict = judge(text, Seen())
        assert verdict.holds is None and math.isnan(verdict.value)
        assert verdict.why.startswith("0 samples, wanted ")


def test_a_share_waits_for_as_many_as_its_limit_can_be_seen_in() -> None:
    assert judge("errors<=10%", Seen(answered=19)).holds is None
    assert judge("errors<=10%", Seen(answered=20)).holds is True
    assert judge("errors<=1%", Seen(answered=99)).why == "99 samples, wanted 100"
    assert judge("errors<=1%", Seen(answered=100)).holds is True
    assert judge("errors<=0.01%", Seen(answered=200)).holds is True, "within reason"
    assert judge("agreement>=0.97", Seen(compared=33, agreed=33)).holds is None
    assert judge("agreement>=0.97", Seen(compared=34, agreed=34)).holds is True


def test_a_rare_percentile_waits_longer() -> None:
    assert judge("p95<=80ms", latencies(*[50.0] * 20)).holds is True
    assert judge("p99<=80ms", latencies(*[50.0] * 99)).holds is None
    assert judge("p99<=80ms", latencies(*[50.0] * 100)).holds is True


def test_a_share_past_its_limit_breaks_only_where_chance_does_not_explain_it() -> None:
    doubtful = judge("errors<=1%", Seen(answered=98, errors=2))
    assert (doubtful.holds, doubtful.why) == (None, "past the limit, but perhaps by chance")
    assert judge("errors<=1%", Seen(answered=9700, errors=300)).holds is False
    assert judge("agreement>=0.97", Seen(compared=1000, agreed=900)).holds is False
    assert judge("agreement>=0.97", Seen(compared=1000, agreed=965)).holds is None


def test_a_percentile_breaks_where_even_its_lower_bound_is_past_the_limit() -> None:
    assert judge("p95<=80ms", latencies(*[60.0] * 940, *[200.0] * 60)).holds is None
    assert judge("p95<=80ms", latencies(*[60.0] * 800, *[200.0] * 200)).holds is False
    assert judge("p50<=80ms", latencies(*[60.0] * 800, *[200.0] * 200)).holds is True


def test_a_percentile_does_not_break_by_what_a_histogram_cannot_tell_apart() -> None:
    assert judge("p95<=80ms", latencies(*[78.0] * 400)).holds is not False, "a bucket holds 76.1 to 90.5 ms"
    assert judge("p95<=80ms", latencies(*[92.0] * 400)).holds is False
    assert judge("p95<=1.2x", latencies(*[140.0] * 400), latencies(*[100.0] * 400)).holds is False


def test_a_relative_guard_compares_with_the_others_at_the_same_time() -> None:
    slow_afternoon = latencies(*[160.0] * 400)
    assert judge("p95<=1.2x", latencies(*[150.0] * 100), slow_afternoon).holds is True
    assert judge("p95<=1.2x", latencies(*[300.0] * 100), slow_afternoon).holds is False
    missing = judge("p95<=1.2x", latencies(*[150.0] * 100), latencies(*[160.0] * 7))
    assert (missing.holds, missing.why) == (None, "7 samples of devices to compare with, wanted 20")
    assert judge("agreement>=0.98x", Seen(compared=500, agreed=400), Seen(compared=500, agreed=490)).holds is False
    assert judge("errors<=2x", Seen(answered=1000), Seen(answered=1000)).holds is True


def test_golden_answers_are_counted_not_sampled() -> None:
    assert judge("golden>=1", Seen(checked=8, right=8)).holds is True
    assert judge("golden>=1", Seen(checked=8, right=7)).holds is False
    assert judge("golden>=80%", Seen(checked=8, right=7)).holds is True


def test_one_hot_device_of_five_is_hot() -> None:
    assert judge("temperature<=75C", Seen(temperatures=(60.0, 61.0, 59.0, 84.0, 62.0))).holds is False
    assert judge("temperature<=75C", Seen(temperatures=(60.0, 61.0))).holds is None


def test_energy_is_judged_by_answer() -> None:
    assert judge("energy<=5mJ", Seen(answered=100, energy_mj=600.0, metered=100)).holds is False
    assert judge("energy<=5mJ", Seen(answered=100, energy_mj=400.0, metered=100)).holds is True


@given(st.integers(20, 5000), st.floats(0, 1))
def test_an_interval_holds_the_value_it_is_about(count: int, share: float) -> None:
    errors = round(share * count)
    found = figure("errors", Seen(answered=count - errors, errors=errors), 20)
    assert found.low - 1e-12 <= found.value <= found.high + 1e-12


def test_chance_seldom_breaks_a_guard_whose_truth_is_at_the_limit() -> None:
    """Looked at a hundred times while a step soaks, which is the worst that can be asked of it."""
    source, broken = random.Random(7), 0
    (errors, p95) = parse_guards("errors<=2%,p95<=100ms")
    for _ in range(150):
        seen = Seen()
        for _ in range(100):
            failed = sum(source.random() < 0.02 for _ in range(20))
            values = [200.0 if source.random() < 0.05 else 50.0 for _ in range(20)]
            seen = seen + Seen(answered=20 - failed, errors=failed, latency=histogram_of(values))
            if errors.judge(seen, Seen()).holds is False or p95.judge(seen, Seen()).holds is False:
                broken += 1
                break
    assert broken / 150 <= 0.06


def test_what_is_twice_too_bad_breaks_soon() -> None:
    source = random.Random(3)
    (guard,) = parse_guards("errors<=5%")
    for _ in range(50):
        drawn = sum(source.random() < 0.15 for _ in range(400))
        assert guard.judge(Seen(answered=400 - drawn, errors=drawn), Seen()).holds is False


def test_values_are_shown_in_their_units() -> None:
    assert [shown("errors", 0.0123), shown("p95", 81.26), shown("energy", 5.0), shown("temperature", 71.0)] == [
        "1.23 %", "81.3 ms", "5 mJ", "71 C",
    ]  # fmt: skip
    assert shown("p95", math.nan) == "-"

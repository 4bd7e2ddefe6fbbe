from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.protocol.rollouts import GuardView
from edgekit.fleet.service.history import SPANS, spans_of
from edgekit.fleet.web.bars import guard_bar, stage_bar
from edgekit.fleet.web.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Mark,
    device_charts,
    nice_ticks,
    time_chart,
    time_ticks,
)
from edgekit.fleet.web.wording import detail, number, percent, span_text
from tests.fleet.web.scene import window

DAY = 86_400.0
DIGEST = "a" * 64


@given(st.floats(0, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_few_and_enclose_what_is_shown(low: float, room: float) -> None:
    ticks = nice_ticks(low, low + room)
    assert ticks[0] <= low * (1 + 1e-6) and ticks[-1] >= (low + room) * (1 - 1e-6)
    assert 2 <= len(ticks) <= 7
    steps = {round(after - before, 9) for before, after in pairwise(ticks)}
    assert max(steps) - min(steps) <= 1e-6 * max(ticks[-1], 1e-6)


def test_what_never_changes_still_has_an_axis() -> None:
    assert nice_ticks(0.0, 0.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    windows = [window(place, 60.0 * place, DIGEST) for place in range(3)]  # 61.5 degrees each
    spans = spans_of(windows, 0.0, 180.0)
    svg = str(time_chart(next(one for one in device_charts(spans) if one.unit == "°C"), spans, 0.0, 180.0, ()))
    ticks = re.findall(r'text-anchor="end">([^<]+)<', svg)
    assert len(set(ticks)) == len(ticks) >= 4


@pytest.mark.parametrize(
    ("seconds", "first"),
    [(3_600.0, "00:00"), (6 * 3_600.0, "00:00"), (DAY, "00:00"), (7 * DAY, "Jan 16"), (90 * DAY, "Jan 17")],
)
def test_times_are_ticked_at_full_minutes_hours_or_days(seconds: float, first: str) -> None:
    since = 1_800_000_000.0 - 1_800_000_000.0 % DAY  # 2027-01-15
    ticks = time_ticks(since, since + seconds)
    assert 2 <= len(ticks) <= 8 and ticks[0][1] == first
    assert all(since <= at <= since + seconds for at, _ in ticks)


def chart(points: list[tuple[float, float]], until: float = 3_600.0, marks: tuple[Mark, ...] = ()) -> str:
    """Latency alone: (when, ms)."""
    windows = [window(place, at, DIGEST, latency) for place, (at, latency) in enumerate(points)]
    spans = spans_of(windows, 0.0, until)
    return str(time_chart(device_charts(spans)[0], spans, 0.0, until, marks))


def test_a_line_breaks_where_nothing_was_heard() -> None:
    svg = chart([(60.0 * place, 20.0) for place in range(60) if not 20 <= place < 40])
    path = re.search(r'class="line k1" d="([^"]+)"', svg)
    assert path is not None and path[1].count("M") == 2


def test_a_lonely_value_is_still_seen() -> None:
    path = re.search(r'class="line k1" d="([^"]+)"', chart([(1_800.0, 20.0)]))
    assert path is not None and re.fullmatch(r"M[\d.]+ [\d.]+h0", path[1])


def test_everything_drawn_lies_within_the_axes() -> None:
    svg = chart([(60.0 * place, 1.5**place) for place in range(40)])
    for path in re.findall(r'class="line k\d" d="([^"]+)"', svg):
        for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path):
            assert LEFT <= float(x) <= WIDTH and TOP <= float(y) <= HEIGHT - BOTTOM


def test_each_stretch_says_its_time_and_values_on_hovering() -> None:
    svg = chart([(60.0 * place, 20.0) for place in range(3)])
    titles = re.findall(r'V200"><title>([^<]+)</title>', svg)
    assert len(titles) == 3 and titles[1].startswith("00:01: p50 ")
    late = chart([(0.0, 20.0), (86_000.0, 20.0)], until=86_400.0)
    assert "<title>Jan 01 23:53: p50 " in late


def test_marks_that_would_touch_share_their_numbers() -> None:
    marks = (Mark(600.0, "one <b>"), Mark(605.0, "two"), Mark(3_000.0, "three"))
    svg = chart([(60.0 * place, 20.0) for place in range(59)], marks=marks)
    assert re.findall(r'text-anchor="middle">([\d\N{EN DASH}]+)</text></g>', svg) == ["1\N{EN DASH}2", "3"]
    assert "<title>one &lt;b&gt;; two</title>" in svg


def test_charts_that_nobody_measured_are_left_out() -> None:
    bare = window(0, 0.0, DIGEST).model_copy(update={"link": None})
    titles = [one.title for one in device_charts(spans_of([bare], 0.0, 60.0))]
    assert "Link: bandwidth" not in titles and "Latency" in titles
    assert device_charts(()) == ()


def test_a_device_is_drawn_in_no_more_than_so_many_stretches() -> None:
    windows = [window(place, 10.0 * place, DIGEST) for place in range(1_000)]
    spans = spans_of(windows, 0.0, 10_000.0)
    assert len(spans) == SPANS and sum(span.seen.answered for span in spans) == 100_000


def test_a_stage_is_a_bar_whose_parts_add_up() -> None:
    svg = str(stage_bar({"right": 30, "wrong": 1, "waiting": 69}))
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height', svg)]
    assert sum(widths) == pytest.approx(300.0) and 'aria-label="30 right, 1 wrong, 69 waiting"' in svg
    assert "no devices" in str(stage_bar({}))


def test_a_guard_shows_its_value_beside_its_limit() -> None:
    broken = str(guard_bar(GuardView(text="p95<=80ms", value=120.0, holds=False, samples=40)))
    assert "m-wrong" in broken and "120 ms, limit p95&lt;=80ms" in broken
    bar, limit = re.search(r'm-wrong" width="([\d.]+)"', broken), re.search(r'class="limit" d="M([\d.]+)', broken)
    assert bar is not None and limit is not None and float(bar[1]) / float(limit[1]) == pytest.approx(1.5, abs=0.01)
    assert "0.5 %" in str(guard_bar(GuardView(text="errors<=1%", value=0.005, holds=True, samples=40)))
    untold = GuardView(text="errors<=1%", value=None, holds=None, samples=0)
    assert "nothing to judge by yet" in str(guard_bar(untold))
    told = str(guard_bar(untold.model_copy(update={"why": "0 samples, wanted 20"})))
    assert "0 samples, wanted 20" in told and "nothing to judge" not in told
    assert "svg" not in str(guard_bar(GuardView(text="p95<=1.2x", value=60.0, holds=True, samples=40)))
    assert "0 %" in str(guard_bar(GuardView(text="errors<=0%", value=0.0, holds=True, samples=40)))


def test_words_for_numbers() -> None:
    assert [span_text(s) for s in (12, 75, 7_200, 200_000)] == ["12 s", "1 min", "2 h", "2 d"]
    assert number(math.nan) == number(None) == percent(math.nan) == "\N{EN DASH}"
    assert (number(1234.5, "ms"), number(12.345), percent(0.12345)) == ("1,234 ms", "12.3", "12.3 %")
    assert detail({"reason": "", "steps": [0.5, 1], "none": None}) == "reason ; steps [0.5, 1]"

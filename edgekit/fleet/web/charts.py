"""A device over time: lines with axes, units, what each stretch says on hovering, and what happened marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise

from markupsafe import Markup, escape

from edgekit.fleet.service.history import SPANS, Span
from edgekit.fleet.web.wording import number

WIDTH, HEIGHT = 520, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 32, 30
TIME_STEPS_S = (60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86_400, 2 * 86_400, 7 * 86_400)
MOST_TICKS_X, TICKS_Y = 6, 4
CLOSE = 26.0  # marks that are nearer to each other share a number
GAP = 3.0  # a line breaks where nothing was heard for so many of its steps


@dataclass(frozen=True)
class Line:
    """`color`: a class k1 to k7 of the style sheet. `values`: one for each span, nan where nobody measured."""

    name: str
    color: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Mark:
    """Something that happened; the list beside the charts says what, by its number."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    lines: tuple[Line, ...]

    @property
    def empty(self) -> bool:
        return all(math.isnan(value) for line in self.lines for value in line.values)


def device_charts(spans: Sequence[Span]) -> tuple[Chart, ...]:
    """What a device tells, without those that it does not."""

    def values(of: Callable[[Span], float]) -> tuple[float, ...]:
        return tuple(of(span) for span in spans)

    def rate(span: Span) -> float:
        return 60 * span.seen.requests / max(1.0, span.ends_at - span.starts_at)

    found = (
        Chart(
            "Latency",
            "ms",
            (
                Line("p50", "k1", values(lambda span: span.seen.latency_ms(0.5))),
                Line("p95", "k2", values(lambda span: span.seen.latency_ms(0.95))),
            ),
        ),
        Chart("Requests", "a minute", (Line("requests", "k1", values(rate)),)),
        Chart(
            "Not as planned",
            "%",
            (
                Line("errors", "k5", values(lambda span: 100 * span.seen.share(span.seen.errors))),
                Line("degraded", "k2", values(lambda span: 100 * span.seen.share(span.seen.degraded))),
                Line("late", "k4", values(lambda span: 100 * span.seen.share(span.seen.late))),
            ),
        ),
        Chart("Agreement with the full model", "%", (Line("agreed", "k3", values(lambda s: 100 * s.seen.agreement)),)),
        Chart("Link: bandwidth", "Mbit/s", (Line("bandwidth", "k3", values(lambda span: span.bandwidth_mbps)),)),
        Chart("Link: round trip", "ms", (Line("round trip", "k4", values(lambda span: span.rtt_ms)),)),
        Chart("Temperature", "°C", (Line("temperature", "k2", values(lambda span: span.temperature_c)),)),
        Chart("Power", "W", (Line("power", "k6", values(lambda span: span.power_w)),)),
    )
    return tuple(chart for chart in found if not chart.empty)


def nice_ticks(low: float, high: float, most: int = TICKS_Y) -> list[float]:
    """From at or below `low` to at or above `high`, in steps of 1, 2, 2.5 or 5 times a power of ten."""
    room = high - low if high > low else 1.0
    power = 10.0 ** math.floor(math.log10(room / most))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * most >= room * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil((low + room) / step - 1e-9)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


def time_ticks(since: float, until: float, most: int = MOST_TICKS_X) -> list[tuple[float, str]]:
    """Full minutes, hours or days in UTC, with how they are written."""
    fitting = (one for one in TIME_STEPS_S if (until - since) / one <= most)
    step = next(fitting, 86_400 * math.ceil((until - since) / most / 86_400))
    form = "%H:%M" if step < 86_400 else "%b %d"
    first = math.ceil(since / step)
    ticks = [place * step for place in range(first, int(until // step) + 1)]
    return [(tick, datetime.fromtimestamp(tick, timezone.utc).strftime(form)) for tick in ticks]


def time_chart(chart: Chart, spans: Sequence[Span], since: float, until: float, marks: Sequence[Mark]) -> Markup:
    known = [value for line in chart.lines for value in line.values if not math.isnan(value)]
    ticks = nice_ticks(*_reach(chart.unit, known))
    low, high = ticks[0], ticks[-1]

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (at - since) / max(until - since, 1e-9)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    rows = [_grid(ticks, y), _clock(since, until, x), f'<text class="unit" x="0" y="14">{escape(chart.unit)}</text>']
    rows += _marks([(place, x(mark.at), mark) for place, mark in enumerate(marks, 1) if since <= mark.at <= until])
    middles = [(span.starts_at + span.ends_at) / 2 for span in spans]
    width = (until - since) / SPANS
    rows += [_line(line, middles, GAP * max(width, _typical(middles)), x, y) for line in chart.lines]
    rows.append(_hovers(chart, spans, x))
    words = "; ".join(f"{line.name} last {number(line.values[-1], chart.unit)}" for line in chart.lines)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{} in {}: {}">{}</svg>').format(
        WIDTH, HEIGHT, chart.title, chart.unit, words, Markup("".join(rows))
    )


def _reach(unit: str, known: Sequence[float]) -> tuple[float, float]:
    """From zero, but for temperatures, where the way from zero says nothing."""
    if unit == "°C":
        return min(known) - 1, max(known) + 1
    return 0.0, max(known)


def _grid(ticks: Sequence[float], y: Callable[[float], float]) -> str:
    return "".join(
        f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 7}" y="{y(tick) + 4.5:.1f}" text-anchor="end">{tick:,.6g}</text>'
        for tick in ticks
    )


def _clock(since: float, until: float, x: Callable[[float], float]) -> str:
    floor = HEIGHT - BOTTOM
    return "".join(
        f'<path class="axis" d="M{x(tick):.1f} {floor}v4"/>'
        f'<text x="{min(max(x(tick), LEFT + 8), WIDTH - RIGHT - 14):.1f}" y="{HEIGHT - 9}" '
        f'text-anchor="middle">{text}</text>'
        for tick, text in time_ticks(since, until)
    )


def _marks(found: Sequence[tuple[int, float, Mark]]) -> list[str]:
    """Numbers that would touch are written once, as from and to."""
    rows, held = [], list(found)
    while held:
        near = [one for one in held if one[1] - held[0][1] < CLOSE]
        held = held[len(near) :]
        first, last = near[0][0], near[-1][0]
        number = f"{first}" if first == last else f"{first}\N{EN DASH}{last}"
        lines = "".join(f"M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" for _, x, _ in near)
        words = escape("; ".join(mark.text for _, _, mark in near))
        rows.append(
            f'<g class="mark"><title>{words}</title><path d="{lines}"/>'
            f'<text x="{near[0][1]:.1f}" y="{TOP - 7}" text-anchor="middle">{number}</text></g>'
        )
    return rows


def _typical(middles: Sequence[float]) -> float:
    """The middle one of the steps from span to span."""
    steps = sorted(after - before for before, after in pairwise(middles))
    return steps[len(steps) // 2] if steps else 0.0


def _line(
    line: Line, middles: Sequence[float], gap: float, x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    """One path; a value between two gaps is a dot (a line of no length with round ends)."""
    words, last = [], -math.inf
    for at, value in zip(middles, line.values, strict=True):
        if math.isnan(value):
            continue
        joined = at - last <= gap
        words.append(f"{'L' if joined else 'M'}{x(at):.1f} {y(value):.1f}{'' if joined else 'h0'}")
        last = at
    return f'<path class="line {line.color}" d="{"".join(words)}"/>'


def _hovers(chart: Chart, spans: Sequence[Span], x: Callable[[float], float]) -> str:
    """A stroke over the height for each span, unseen until the pointer is there."""
    rows, form = [], "%H:%M" if spans and spans[-1].ends_at - spans[0].starts_at < 80_000 else "%b %d %H:%M"
    for place, span in enumerate(spans):
        values = ", ".join(f"{line.name} {number(line.values[place], chart.unit)}" for line in chart.lines)
        clock = datetime.fromtimestamp(span.starts_at, timezone.utc).strftime(form)
        middle = x((span.starts_at + span.ends_at) / 2)
        rows.append(f'<path d="M{middle:.0f} {TOP}V{HEIGHT - BOTTOM}"><title>{clock}: {escape(values)}</title></path>')
    wide = max((x(span.ends_at) - x(span.starts_at) for span in spans), default=0.0)
    return f'<g class="hover" stroke-width="{max(wide, 4.0):.1f}">{"".join(rows)}</g>'

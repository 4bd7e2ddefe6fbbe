"""Lines of dots over a logarithmic axis, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgekit.report.plots import WIDTH, svg

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 62, 16, 16, 46


@dataclass(frozen=True)
class Dot:
    """`words` is what a pointer resting on it shows."""

    x: float
    y: float
    words: str


@dataclass(frozen=True)
class Series:
    """`color` is a class of the style sheet; dots are joined in the order of x."""

    name: str
    color: str
    dots: tuple[Dot, ...]


def scatter_plot(series: Sequence[Series], title: str, x_label: str, y_label: str) -> str:
    """x logarithmic (values below one are drawn at one), y linear, both only as far as the dots reach."""
    dots = [dot for one in series for dot in one.dots]
    x_low, x_high = _reach([math.log10(max(dot.x, 1.0)) for dot in dots], 0.05)
    y_ticks = ticks(min(dot.y for dot in dots), max(dot.y for dot in dots))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(max(value, 1.0)) - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_low) / (y_high - y_low)

    floor = HEIGHT - BOTTOM
    rows = []
    for value in log_ticks(x_low, x_high):
        rows.append(f'<path class="grid" d="M{x(value):.1f} {TOP}V{floor}"/>')
        rows.append(f'<text x="{x(value):.1f}" y="{floor + 19}" text-anchor="middle">{value:,.0f}</text>')
    decimals = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    for value in y_ticks:
        rows.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        rows.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.{decimals}f}</text>')
    rows.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{floor + 40}" text-anchor="middle">{escape(x_label)}</text>'
    )
    middle = (TOP + floor) / 2
    rows.append(
        f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for one in series:
        ordered = sorted(one.dots, key=lambda dot: dot.x)
        path = "L".join(f"{x(dot.x):.1f} {y(dot.y):.1f}" for dot in ordered)
        circles = "".join(
            f'<circle class="dot" cx="{x(dot.x):.1f}" cy="{y(dot.y):.1f}" r="5">'
            f"<title>{escape(dot.words)}</title></circle>"
            for dot in ordered
        )
        rows.append(f'<g class="{one.color}"><path class="stroke" stroke-opacity=".55" d="M{path}"/>{circles}</g>')
    best = max(dots, key=lambda dot: dot.y)
    return svg(WIDTH, HEIGHT, title, f"{len(dots)} points; highest: {best.words}", rows)


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round values that enclose [low, high]."""
    span = max(high - low, 1e-6, abs(high) * 1e-3)
    raw = 10 ** math.floor(math.log10(span))
    step = next(raw * factor for factor in (0.2, 0.5, 1, 2) if span / (raw * factor) <= 7)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [step * index for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between two exponents: powers of ten, and twice and five times these where few fit."""
    factors = (1,) if high - low > 3 else (1, 2, 5)
    values = [f * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for f in factors]
    return [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]


def _reach(values: Sequence[float], room: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    slack = max(room * (high - low), 0.1)
    return max(0.0, low - slack), high + slack

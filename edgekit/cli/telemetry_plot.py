"""Telemetry over time as an SVG file: latencies above, agreement and errors below."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from html import escape
from typing import TYPE_CHECKING

from edgekit.cli.policy_plot import STYLE

if TYPE_CHECKING:
    from edgekit.fleet.protocol.telemetry import SpanView, TelemetryView

WIDTH, LEFT, RIGHT, HEIGHT, GAP, TITLE = 760, 70, 90, 150, 40, 24
LINES = (
    STYLE
    + """
.p50 { stroke: #1d5fd1; } .p95 { stroke: #0b7f74; } .p99 { stroke: #8a5a00; } .agreement { stroke: #1d5fd1; }
.errors { stroke: #b3261e; } path { fill: none; stroke-width: 1.8; }
circle { fill: none; stroke-width: 3; } .axis { stroke: #c9cfd8; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  .p50, .agreement { stroke: #77a7ff; } .p95 { stroke: #4fc7b8; } .p99 { stroke: #e0b25c; }
  .errors { stroke: #ff8a80; } .axis { stroke: #3a424f; }
}
"""
)

Curve = tuple[str, Callable[["SpanView"], float | None]]
# The highest first: labels that would meet are moved down.
LATENCIES: tuple[Curve, ...] = (
    ("p99", lambda span: span.p99_ms),
    ("p95", lambda span: span.p95_ms),
    ("p50", lambda span: span.p50_ms),
)
SHARES: tuple[Curve, ...] = (
    ("agreement", lambda span: None if span.agreement is None else 100 * span.agreement),
    ("errors", lambda span: 100 * span.errors / max(1, span.answered + span.errors)),
)


def telemetry_plot(view: TelemetryView) -> str:
    """Bundles that answered in the same step follow each other at its place."""
    parts = _panel(f"{view.scope}: latency in ms", view, LATENCIES, 10.0)
    parts += _panel("agreement and errors in %", view, SHARES, 10.0 + TITLE + HEIGHT + GAP)
    height = 2 * (TITLE + HEIGHT + GAP)
    words = f"telemetry of {view.scope}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(words)}"><style>{LINES}</style>{"".join(parts)}</svg>\n'
    )


def _panel(title: str, view: TelemetryView, curves: Sequence[Curve], y: float) -> list[str]:
    values = [value for _, of in curves for span in view.spans if (value := of(span)) is not None]
    top, bottom = y + TITLE, y + TITLE + HEIGHT
    most = _round_up(max(values, default=1.0))
    parts = [f'<text class="title" x="10" y="{y + 14:.0f}">{escape(title)}</text>']
    for share in (0.0, 0.5, 1.0):
        at = bottom - share * HEIGHT
        parts.append(f'<path class="axis" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{share * most:.4g}</text>')
    for moment, anchor, x in ((view.since, "start", LEFT), (view.until, "end", WIDTH - RIGHT)):
        text = datetime.fromtimestamp(moment, timezone.utc).strftime("%m-%d %H:%M")
        parts.append(f'<text class="soft" x="{x}" y="{bottom + 18:.0f}" text-anchor="{anchor}">{text}</text>')
    taken: list[float] = []
    for name, of in curves:
        points = [(span.starts_at + span.seconds / 2, value) for span in view.spans if (value := of(span)) is not None]
        if points:
            parts += _curve(name, points, view, (top, bottom), most, taken)
    return parts


def _curve(
    name: str,
    points: list[tuple[float, float]],
    view: TelemetryView,
    span: tuple[float, float],
    most: float,
    taken: list[float],
) -> list[str]:
    top, bottom = span
    scale = (WIDTH - RIGHT - LEFT) / max(1e-9, view.until - view.since)
    placed = [
        (
            min(WIDTH - RIGHT, max(LEFT, LEFT + (at - view.since) * scale)),
            bottom - (bottom - top) * min(1.0, value / most),
        )
        for at, value in points
    ]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    x, y = placed[-1]
    while any(abs(y - other) < 14 for other in taken):
        y += 14
    taken.append(y)
    dot = f'<circle class="{name}" cx="{x:.1f}" cy="{placed[-1][1]:.1f}" r="2.5"/>'
    return [f'<path class="{name}" d="{path}"/>', dot, f'<text x="{x + 8:.1f}" y="{y + 4:.1f}">{name}</text>']


def _round_up(value: float) -> float:
    """To 1, 2 or 5 of a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if value <= step * power * (1 + 1e-9))

"""Plans as a picture: latency across, points lost upwards."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekit.cli.drawing import (
    BOTTOM,
    BOUND,
    COLORS,
    HEIGHT,
    INK,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Dot,
    Line,
    Shape,
    Text,
    sheet,
    ticks,
)
from edgekit.planning.plan import Plan, PlanLimits


def front_shapes(front: Sequence[Plan], chosen: Plan, limits: PlanLimits, title: str) -> list[Shape]:
    """A dot a plan, its area after the bytes sent, a colour a variant; the chosen one ringed, limits dashed. Plans far
    beyond the limit on points are told, not drawn: they would squeeze the rest."""
    ceiling = math.inf if limits.drop is None else max(5 * limits.drop, limits.drop + 2)
    beyond = sum(plan.drop > ceiling for plan in front)
    front = [plan for plan in front if plan.drop <= ceiling]
    x_ticks = ticks([plan.latency_ms for plan in front], limits.latency_ms, zero=True)
    y_ticks = ticks([plan.drop for plan in front], limits.drop, zero=False)
    x, y, shapes = sheet(x_ticks, y_ticks, title, "expected latency, ms")
    if beyond:
        words = f"not drawn: {beyond} that lose over {ceiling:g} points"
        shapes.append(Text(WIDTH - RIGHT, TOP - 16, words, anchor="end"))
    if limits.latency_ms is not None:
        shapes.append(Line(x(limits.latency_ms), TOP, x(limits.latency_ms), HEIGHT - BOTTOM, BOUND, True))
    if limits.drop is not None:
        shapes.append(Line(LEFT, y(limits.drop), WIDTH - RIGHT, y(limits.drop), BOUND, True))
    most = max((plan.bytes_sent for plan in front), default=0.0) or 1.0
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(dict.fromkeys(plan.variant for plan in front))}
    for plan in front:
        radius = 4 + 8 * math.sqrt(plan.bytes_sent / most)
        words = f"{plan.variant} {list(plan.rates)}: {plan.latency_ms:.1f} ms, {plan.energy_mj:.1f} mJ, "
        words += f"{plan.bytes_sent:.0f} bytes, {plan.drop:.2f} points"
        shapes.append(Dot(x(plan.latency_ms), y(plan.drop), radius, colors[plan.variant], words))
        if plan == chosen:
            shapes.append(Dot(x(plan.latency_ms), y(plan.drop), radius + 4, INK, "chosen", ring=2.0))
    for row, (name, color) in enumerate(colors.items()):
        shapes.append(Dot(WIDTH - RIGHT + 20, TOP + 10 + 22 * row, 5, color))
        shapes.append(Text(WIDTH - RIGHT + 32, TOP + 14 + 22 * row, name, INK))
    shapes.append(Text(WIDTH - RIGHT + 15, TOP + 22 * len(colors) + 26, "area: bytes sent; ring: chosen"))
    return shapes

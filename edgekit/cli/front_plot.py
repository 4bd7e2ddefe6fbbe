"""Plans as a picture: latency across, points lost upwards."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekit.cli.drawing import (
    COLORS,
    INK,
    RIGHT,
    TOP,
    WIDTH,
    Dot,
    Shape,
    Text,
    legend,
    limit_lines,
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
    shapes += limit_lines(x, y, limits.latency_ms, limits.drop)
    most = max((plan.bytes_sent for plan in front), default=0.0) or 1.0
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(dict.fromkeys(plan.variant for plan in front))}
    for plan in front:
        radius = 4 + 8 * math.sqrt(plan.bytes_sent / most)
        words = f"{plan.variant} {list(plan.rates)}: {plan.latency_ms:.1f} ms, {plan.energy_mj:.1f} mJ, "
        words += f"{plan.bytes_sent:.0f} bytes, {plan.drop:.2f} points"
        shapes.append(Dot(x(plan.latency_ms), y(plan.drop), radius, colors[plan.variant], words))
        if plan == chosen:
            shapes.append(Dot(x(plan.latency_ms), y(plan.drop), radius + 4, INK, "chosen", ring=2.0))
    return shapes + legend(list(colors.items()), ("area: bytes sent; ring: chosen",))

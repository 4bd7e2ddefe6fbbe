"""Bundles as a picture: latency across, points lost upwards, the area of a dot its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.cli.drawing import COLORS, Dot, Shape, legend, sheet, ticks
from edgekit.cli.wording import size_text

if TYPE_CHECKING:
    from edgekit.cli.compare import Compared

LONGEST_NAME = 26
# Dots whose centres are nearer than this many pixels lie on each other; the upper one is then drawn smaller.
CLOSE, SMALLER = 6.0, 0.6


def comparison_shapes(rows: Sequence[Compared], title: str) -> list[Shape]:
    """On the device as predicted where all state it, here as measured elsewhere. Bundles without either figure are
    named only."""
    on_device = all(row.device_ms is not None for row in rows)
    figures = [(row.device_ms if on_device else row.host_ms, row.lost) for row in rows]
    drawn = [(latency, lost) for latency, lost in figures if latency is not None and lost is not None]
    x_ticks = ticks([latency for latency, _ in drawn], None, zero=True)
    y_ticks = ticks([lost for _, lost in drawn], None, zero=True)
    where = "latency on the device, predicted, ms" if on_device else "latency here, measured, ms"
    x, y, shapes = sheet(x_ticks, y_ticks, title, where)
    largest = max(row.size_bytes for row in rows)
    named, dots = [], []
    for index, (row, (latency, lost)) in enumerate(zip(rows, figures, strict=True)):
        color = COLORS[index % len(COLORS)]
        named.append((row.bundle if len(row.bundle) <= LONGEST_NAME else f"{row.bundle[: LONGEST_NAME - 1]}…", color))
        if latency is not None and lost is not None:
            words = f"{row.bundle}: {latency:.3g} ms, {lost:.2f} points, {size_text(row.size_bytes)}"
            radius = 4 + 10 * math.sqrt(row.size_bytes / largest)
            dots.append(Dot(x(latency), y(lost), radius, color, words))
    return shapes + _apart(dots) + legend(named, ("area: size of the artifact",))


def _apart(dots: Sequence[Dot]) -> list[Shape]:
    """Large ones first; one that lies on another of its size becomes smaller, so that both are seen."""
    drawn: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: -dot.radius):
        radius = dot.radius
        for other in drawn:
            if math.hypot(dot.x - other.x, dot.y - other.y) < CLOSE:
                radius = min(radius, SMALLER * other.radius)
        drawn.append(replace(dot, radius=radius))
    return list(drawn)

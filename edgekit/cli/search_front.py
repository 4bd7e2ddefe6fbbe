"""The front that a search found, as a table and as a picture: latency across, points lost upwards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from edgekit.cli.drawing import (
    COLORS,
    INK,
    SOFT,
    Dot,
    Line,
    Scale,
    Shape,
    legend,
    limit_lines,
    sheet,
    ticks,
)
from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.cli.wording import ms_text, size_text

if TYPE_CHECKING:
    from edgekit.search.outcome import Found
    from edgekit.search.verify import Verified

COLUMNS = (
    Column("recipe", style="cyan"),
    Column("points lost", number=True),
    Column("95 %"),
    Column("expected", number=True),
    Column("device ms", number=True),
    Column("expected", number=True),
    Column("size", number=True),
    Column(""),
)
# Points that lose more than this many times the limit would squeeze the rest of the picture.
SHOWN_DROPS = 5
# The axis of latencies begins at zero where the least is less than this share of the largest.
FAR_APART = 0.4


def show_search(out: Output, outcome: Found) -> None:
    out.table(Table(COLUMNS, [_row(one, outcome) for one in outcome.front], "Pareto front, verified"))


def _row(one: Verified, outcome: Found) -> tuple[Cell, ...]:
    is_chosen = one.configuration == outcome.choice
    style = "bold green" if is_chosen else ""
    mark = "chosen" if is_chosen else ", ".join(outcome.limits.broken(one.figures()))
    drop, latency = one.expected.get("drop"), one.expected.get("latency_ms")
    texts = (
        str(one.configuration),
        f"{one.drop:.2f}",
        f"{one.low:.2f} to {one.high:.2f}",
        "-" if drop is None else f"{drop:.2f}",
        ms_text(one.latency_ms),
        "-" if latency is None else ms_text(latency),
        size_text(one.size_bytes),
        mark,
    )
    return tuple(Cell(text, style) for text in texts)


def search_shapes(outcome: Found, title: str) -> list[Shape]:
    """A dot a verified recipe, a colour a format and precision; those joined that none beats in both, the expected
    front as a dashed line, the chosen recipe ringed, limits dashed. Of `outcome` something was built."""
    limits = outcome.limits
    ceiling = max(SHOWN_DROPS * (limits.drop or 0.0), 2.0)
    built = [one for one in outcome.verified if not one.failed]
    shown = [one for one in built if one.drop <= ceiling] or built
    latencies = [one.latency_ms for one in shown]
    x_ticks = ticks(latencies, limits.latency_ms, zero=min(latencies) < FAR_APART * max(latencies))
    y_ticks = ticks([one.drop for one in shown], limits.drop, zero=True)
    x, y, shapes = sheet(x_ticks, y_ticks, title, "latency on the device, ms")
    inside = [
        (one.figures["latency_ms"], one.figures["drop"])
        for one in outcome.expected
        if one.figures["drop"] <= y_ticks[-1] and one.figures["latency_ms"] <= x_ticks[-1]
    ]
    shapes += _joined(inside, x, y, SOFT, dashed=True)
    shapes += _joined(_falling([(one.latency_ms, one.drop) for one in shown]), x, y, INK, dashed=False)
    shapes += limit_lines(x, y, limits.latency_ms, limits.drop)
    names = dict.fromkeys(f"{one.configuration.family.format} {one.configuration.family.precision}" for one in shown)
    colors = {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}
    for one in shown:
        family = one.configuration.family
        words = f"{one.configuration}: {one.latency_ms:.3g} ms, {one.drop:.2f} points, {size_text(one.size_bytes)}"
        shapes.append(Dot(x(one.latency_ms), y(one.drop), 5, colors[f"{family.format} {family.precision}"], words))
        if one.configuration == outcome.choice:
            shapes.append(Dot(x(one.latency_ms), y(one.drop), 9, INK, "chosen", ring=2.0))
    ring = "ring: chosen" if outcome.choice is not None else "none within the limits"
    lines = (ring, "line: front, verified", "dashed grey: front, expected", "green: limits")
    return shapes + legend(list(colors.items()), lines)


def _falling(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in both: the front in the plane that is drawn, which size does not see."""
    kept: list[tuple[float, float]] = []
    for latency, drop in sorted(points):
        if not kept or drop < kept[-1][1]:
            kept.append((latency, drop))
    return kept


def _joined(points: Sequence[tuple[float, float]], x: Scale, y: Scale, color: str, *, dashed: bool) -> list[Line]:
    return [Line(x(a[0]), y(a[1]), x(b[0]), y(b[1]), color, dashed) for a, b in pairwise(points)]

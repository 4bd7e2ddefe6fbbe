"""The map: every device a small cell coloured by its state, in one SVG that stays small however many there are.

Devices keep their place (by name), so that a cell that changes is seen to change. Neighbours in the same state are one
stroke, dashed into cells: the size follows the number of changes along the rows, not the number of devices. On a page
of few cells each has a link and a title instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from urllib.parse import quote

from markupsafe import Markup, escape

from edgekit.fleet.service.glance import CELL_STATES, Cell, CellState
from edgekit.fleet.web.wording import STATE_WORDS

EACH_UPTO = 200  # cells of a page with a link and a title of their own
LEAST_COLUMNS, MOST_COLUMNS = 16, 64


def columns_for(devices: int) -> int:
    """Wider than high."""
    return max(LEAST_COLUMNS, min(MOST_COLUMNS, math.ceil(math.sqrt(devices * 1.6))))


def fleet_map(found: Sequence[Cell], what: str, on_page: int, at: str = "") -> Markup:
    """`what`: whose map, for who hears it. `on_page`: cells of all maps there. `at`: where a click on the n-th cell
    leads, with n behind it."""
    columns = columns_for(len(found))
    rows = max(1, math.ceil(len(found) / columns))
    each = on_page <= EACH_UPTO
    inner = "".join(_each(found, columns) if each else _runs(found, columns))
    counts = ", ".join(
        f"{number:,} {STATE_WORDS[state]}"
        for state in CELL_STATES
        if (number := sum(cell.state == state for cell in found))
    )
    leads = Markup(' data-at="{}" data-cells="{}" data-columns="{}"').format(at, len(found), columns)
    return Markup('<svg class="map" viewBox="0 0 {} {}" role="img" aria-label="{}: {}"{}>{}</svg>').format(
        columns, rows, what, counts or "no devices", Markup("") if each or not at else leads, Markup(inner)
    )


def _each(found: Sequence[Cell], columns: int) -> Iterator[str]:
    for place, cell in enumerate(found):
        y, x = divmod(place, columns)
        name = escape(cell.name)
        yield (
            f'<a href="/devices/{quote(cell.name)}" tabindex="-1"><title>{name}: {STATE_WORDS[cell.state]}</title>'
            f'<path class="s-{cell.state}" d="M{x} {y}.5h1"/></a>'
        )


def _runs(found: Sequence[Cell], columns: int) -> Iterator[str]:
    """One path for each state; a run is told from where the one before it ended."""
    strokes: dict[CellState, list[str]] = {}
    ends: dict[CellState, tuple[int, int]] = {}
    for y in range(math.ceil(len(found) / columns)):
        x = 0
        for state, run in groupby(cell.state for cell in found[y * columns : (y + 1) * columns]):
            length = sum(1 for _ in run)
            from_x, from_y = ends.get(state, (0, 0))
            strokes.setdefault(state, ["M0 .5"]).append(f"m{x - from_x} {y - from_y}h{length}")
            x += length
            ends[state] = (x, y)
    for held, drawn in strokes.items():
        yield f'<path class="s-{held}" d="{"".join(drawn)}"/>'

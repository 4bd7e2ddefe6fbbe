from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.service.glance import CELL_STATES, Cell, CellState
from edgekit.fleet.web.cells import EACH_UPTO, columns_for, fleet_map

BUDGET_BYTES = 100_000


def cells(states: list[CellState]) -> list[Cell]:
    return [Cell(f"pi-{place:06}", "device", {}, state, None, None, "idle", 0.0) for place, state in enumerate(states)]


def drawn(svg: str, columns: int) -> dict[int, str]:
    """Place -> state, as the strokes say."""
    found: dict[int, str] = {}
    for state, path in re.findall(r'<path class="s-(\w+)" d="([^"]+)"', svg):
        x, y = 0, 0.0
        for command, first, second in re.findall(r"([Mmh])(-?[\d.]+)(?: (-?[\d.]+))?", path):
            if command == "M":
                x, y = int(first), float(second)
            elif command == "m":
                x, y = x + int(first), y + int(second)
            else:
                for place in range(int(y) * columns + x, int(y) * columns + x + int(first)):
                    assert y % 1 == 0.5 and place not in found
                    found[place] = state
                x += int(first)
    return found


@given(st.lists(st.sampled_from(CELL_STATES), max_size=3 * EACH_UPTO))
def test_every_device_is_drawn_once_in_its_state_at_its_place(states: list[CellState]) -> None:
    svg = str(fleet_map(cells(states), "pi", len(states), "/groups/pi/at/"))
    assert drawn(svg, columns_for(len(states))) == dict(enumerate(states))


def test_ten_thousand_devices_stay_small_even_where_no_two_neighbours_are_alike() -> None:
    worst = [CELL_STATES[place % len(CELL_STATES)] for place in range(10_000)]
    assert len(str(fleet_map(cells(worst), "pi", 10_000, "/groups/pi/at/"))) < BUDGET_BYTES
    calm: list[CellState] = ["right"] * 10_000
    calm[5_000] = "failed"
    assert len(str(fleet_map(cells(calm), "pi", 10_000, "/groups/pi/at/"))) < BUDGET_BYTES / 20


def test_a_small_map_links_each_device_and_a_large_one_says_how_to_find_them() -> None:
    small = str(fleet_map(cells(["right"] * EACH_UPTO), "pi", EACH_UPTO, "/groups/pi/at/"))
    assert small.count('<a href="/devices/pi-') == EACH_UPTO and "data-at" not in small
    large = str(fleet_map(cells(["right"] * (EACH_UPTO + 1)), "pi", EACH_UPTO + 1, "/groups/pi/at/"))
    assert "<a " not in large and f'data-at="/groups/pi/at/" data-cells="{EACH_UPTO + 1}"' in large


def test_a_map_says_in_words_what_it_shows() -> None:
    svg = str(fleet_map(cells(["right", "lost", "right"]), 'a "group" <b>', 3))
    assert 'aria-label="a &#34;group&#34; &lt;b&gt;: 2 runs what it should, 1 not heard of"' in svg
    assert "no devices" in str(fleet_map([], "pi", 0))


def test_maps_are_wider_than_high() -> None:
    for devices in (1, 17, 1_000, 10_000):
        columns = columns_for(devices)
        assert columns >= math.sqrt(devices) or columns == 64

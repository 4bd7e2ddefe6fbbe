"""Pages stay within 100 kB in fleets of 10,000 devices, in the worst case too: the style sheet and script included."""

from __future__ import annotations

import gzip

from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.protocol.people import DeviceChange, GroupView
from edgekit.fleet.server.pages.answering import GZIP_LEVEL
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.glance import CELL_STATES, Cell, Glance, GroupGlance
from edgekit.fleet.service.history import SPANS
from edgekit.fleet.service.people import Actor
from edgekit.fleet.web.drawing import draw_page, statics
from tests.fleet.conftest import SettableClock
from tests.fleet.web.scene import ADMIN, Visitor, enroll, say, window

BUDGET_BYTES = 100_000
DEVICES, GROUPS = 10_000, 60
SHARED = {
    "now": 1e9, "may": lambda role: True, "actor": Actor("ada", "admin"), "word": "0" * 64, "path": "/",
    "values": {}, "error": None,
}  # fmt: skip


def assert_small(page_bytes: int) -> None:
    total = page_bytes + sum(len(one.content) for one in statics().values())
    assert total <= BUDGET_BYTES, total


def glance() -> Glance:
    """No two neighbours of any group are in the same state."""
    groups = []
    for place in range(GROUPS):
        held = tuple(
            Cell(f"pi-{place:02}-{one:04}", "device", {}, CELL_STATES[one % len(CELL_STATES)], None, None, "idle", 0.0)
            for one in range(DEVICES // GROUPS)
        )
        view = GroupView(
            name=f"a-group-with-a-long-name-{place}", selector=f"site=plant-{place}", interval_s=30.0,
            compare_share=0.0, devices=len(held), connected=0, running={}, version=1,
        )  # fmt: skip
        groups.append(GroupGlance(view, held))
    return Glance(0.0, tuple(cell for group in groups for cell in group.cells), tuple(groups), (), {})


def test_the_overview_stays_small_where_no_two_neighbours_are_alike() -> None:
    seen = glance()
    context = {
        "glance": seen,
        "groups": seen.groups,
        "going": [],
        "ended": [],
        "more": 0,
        "found": {"suspect": 3, "drift": 4},
    }
    text = draw_page("overview.html", {**SHARED, **context}).encode()
    assert_small(len(gzip.compress(text, GZIP_LEVEL)))
    assert len(text) < 1.2 * BUDGET_BYTES  # for who takes no compression


def test_a_device_of_which_everything_is_measured_all_the_time_stays_small(
    admin: Visitor, service: FleetService, clock: SettableClock
) -> None:
    device, now = enroll(service, "a-device-with-a-long-name", board="rpi4"), clock()
    windows = [
        window(place, now - 59.0 * (SPANS - place), f"{place % 2}" * 64, 1.37 ** (place % 20), f"plan-{place}")
        for place in range(SPANS)
    ]
    whole = [one.model_copy(update={"compared": 50, "agreed": 49, "degraded": 3, "late": 2}) for one in windows]
    say(service, device, Slot(running="0" * 64, checked=16, right=16), *whole)
    for _ in range(25):
        service.devices.change(ADMIN, device, DeviceChange(labels={"board": "rpi4", "site": "a-plant-far-away"}))
    answer = admin.get("/devices/a-device-with-a-long-name")
    text = answer.text
    assert text.count('<svg class="chart"') == 8 and text.count('<ol class="marks">') == 1
    assert text.count("<tr>") > SPANS
    assert_small(int(answer.headers["content-length"]))
    assert_small(len(text.encode()))  # for who takes no compression

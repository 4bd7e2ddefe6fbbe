"""Windows over time: groups by what was added up as they came in, devices by the windows themselves, and the export."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import pytest

from edgekit.errors import AbsentError, UsageError
from edgekit.fleet.protocol.people import GroupOrder
from edgekit.fleet.protocol.telemetry import EXPORTED
from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.service import FleetService, spans
from edgekit.fleet.service.spans import SPAN_S, Spans, from_plain, to_plain
from edgekit.fleet.telemetry.seen import Seen
from tests.fleet.acting import ADMIN, enroll, says

if TYPE_CHECKING:
    from tests.fleet.conftest import SettableClock

OLD, NEW = "a" * 64, "b" * 64
HOUR_S = 3600.0


def seen(sequence: int, at: float, digest: str = OLD, **others: object) -> Window:
    values = {"answered": 10, "compared": 4, "agreed": 3, "latency": {20: 9, 28: 1}, **others}
    return Window(sequence=sequence, started_at=at, seconds=30.0, digest=digest, **values)  # type: ignore[arg-type]


def test_spans_of_a_group_hold_what_its_windows_add_up_to(fleet: FleetService, clock: SettableClock) -> None:
    fleet.groups.put(ADMIN, "pi", GroupOrder(selector="board=rpi4"))
    held = [enroll(fleet, f"pi-{number}", {"board": "rpi4"}).device for number in range(3)]
    stranger = enroll(fleet, "jetson-1", {"board": "orin"}).device
    start = SPAN_S * (clock() // SPAN_S) - HOUR_S
    windows = [seen(number, start + 100.0 * number, NEW if number > 3 else OLD) for number in range(6)]
    for device in (*held, stranger):
        for window in windows:
            fleet.devices.sync(device, says(OLD, window))
        fleet.devices.sync(device, says(OLD, *windows))  # all of them once more: the answer was lost
    fleet.devices.close()
    view = fleet.telemetry.of_group("pi", start, clock(), SPAN_S)
    assert [(one.starts_at - start, one.digest, one.windows, one.answered) for one in view.spans] == [
        (0.0, OLD, 9, 90),
        (SPAN_S, OLD, 3, 30),
        (SPAN_S, NEW, 6, 60),
    ]
    assert view.spans[0].agreement == 0.75
    assert view.spans[0].p50_ms == pytest.approx(32, rel=0.1) and view.spans[0].p99_ms == pytest.approx(128, rel=0.1)
    everyone = fleet.telemetry.of_group("", start, clock(), 2 * HOUR_S)
    assert sum(one.windows for one in everyone.spans) == 24


def test_what_grew_is_written_while_devices_go_on_talking(
    fleet: FleetService, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.fleet.service import ingest

    monkeypatch.setattr(ingest, "SPANS_EVERY_S", 0.0)
    device = enroll(fleet, "pi-1").device
    for number in range(4):
        fleet.devices.sync(device, says(OLD, seen(number, clock() - 60)))
    assert sum(one.windows for one in fleet.telemetry.of_group("", clock() - HOUR_S, clock(), HOUR_S).spans) >= 3


def test_spans_that_left_memory_are_added_to_and_not_written_over(
    fleet: FleetService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "MOST", 2)
    worker = Spans()
    for number in range(12):
        worker.add([((), [seen(number, SPAN_S * (number % 4))])])
        with fleet.database.write() as session:
            worker.write(session.connection())
        worker.written()
    found = fleet.telemetry.of_group("", 0.0, 4 * SPAN_S, SPAN_S)
    assert [one.windows for one in found.spans] == [3, 3, 3, 3]


def test_plain_content_keeps_all_that_adds_up() -> None:
    window = seen(0, 0.0, errors=2, energy_mj=5.0, confidence={-1: 10}, inputs={3: 10})
    once = from_plain(to_plain(Seen.of([window])))
    assert to_plain(once + once) == to_plain(Seen.of([window, window]))
    assert from_plain({"windows": 1, "of_a_newer_worker": 3}).windows == 1


def test_a_device_is_told_by_its_windows_in_steps(fleet: FleetService, clock: SettableClock) -> None:
    device = enroll(fleet, "pi-1").device
    start = 60.0 * (clock() // 60.0) - 600.0
    fleet.devices.sync(device, says(OLD, *(seen(number, start + 30.0 * number) for number in range(8))))
    view = fleet.telemetry.of_device("pi-1", start, clock(), 60.0)
    assert view.scope == "device pi-1" and [one.windows for one in view.spans] == [2, 2, 2, 2]
    assert fleet.telemetry.of_device(device, start + 120.0, clock(), 60.0).spans == view.spans[2:]


def test_unknown_names_and_too_many_steps_are_refused(fleet: FleetService, clock: SettableClock) -> None:
    with pytest.raises(AbsentError, match="no device nobody"):
        fleet.telemetry.of_device("nobody", 0.0, 10.0, 1.0)
    with pytest.raises(AbsentError, match="no group none"):
        fleet.telemetry.of_group("none", 0.0, 10.0, 300.0)
    for since, until in ((0.0, clock()), (10.0, 10.0), (10.0, 5.0)):
        with pytest.raises(UsageError, match="steps"):
            fleet.telemetry.of_group("", since, until, 300.0)


def test_the_export_has_every_window_in_order_and_nothing_that_a_spreadsheet_runs(
    fleet: FleetService, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.fleet.service import telemetry

    monkeypatch.setattr(telemetry, "AT_ONCE", 3)  # several queries for each device
    start = clock() - 60
    for name in ("pi-b", "pi-a", "jetson"):
        device = enroll(fleet, name, {"board": "orin" if name == "jetson" else "rpi4"}).device
        windows = [seen(number, start + number, plan='=cmd|" /C calc"!A0') for number in range(7)]
        fleet.devices.sync(device, says(OLD, *windows))
    text = "".join(fleet.telemetry.export("board=rpi4", start, start + 6.0))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == list(EXPORTED)
    assert [(row["device"], int(row["sequence"])) for row in rows] == [
        (name, number) for name in ("pi-a", "pi-b") for number in range(6)
    ]
    assert {row["plan"][0] for row in rows} == {"'"}
    assert (rows[0]["answered"], rows[0]["agreed"], rows[0]["energy_mj"]) == ("10", "3", "")
    with pytest.raises(UsageError):
        fleet.telemetry.export("board==", 0.0, 1.0)

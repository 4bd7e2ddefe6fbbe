"""What devices say reaches the database once, whole, and before it is acknowledged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, text

from edgekit.errors import AuthenticationError, ForbiddenError, OverloadedError, StoreError, UsageError
from edgekit.fleet.protocol.people import DeviceChange, GroupOrder
from edgekit.fleet.service import FleetService, ingest
from edgekit.fleet.service.ingest import Intake
from edgekit.fleet.store.tables import Device, Event, WindowRow
from tests.fleet.acting import ADMIN, enroll, facts, says, window

if TYPE_CHECKING:
    from tests.fleet.conftest import SettableClock

OLD, NEW = "a" * 64, "b" * 64


def stored(fleet: FleetService) -> list[tuple[str, int]]:
    with fleet.database.read() as session:
        query = select(WindowRow.device, WindowRow.sequence).order_by(WindowRow.device, WindowRow.sequence)
        return [(device, sequence) for device, sequence in session.execute(query)]


@pytest.fixture
def again(database_url: str, tmp_path: Path, clock: SettableClock) -> Iterator[Callable[[], FleetService]]:
    """Another worker on the same database and folder; or the same one after it was killed."""
    made: list[FleetService] = []

    def start() -> FleetService:
        made.append(FleetService(tmp_path / "data", database_url, now=clock))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_many_calls_at_once_share_transactions_and_each_is_stored(fleet: FleetService, clock: SettableClock) -> None:
    devices = [enroll(fleet, f"pi-{number}").device for number in range(12)]

    def talk(device: str) -> list[int]:
        calls = (says(OLD, window(2 * n, OLD, clock()), window(2 * n + 1, OLD, clock())) for n in range(5))
        return [fleet.devices.sync(device, call).taken for call in calls]

    with ThreadPoolExecutor(len(devices)) as pool:
        answers = list(pool.map(talk, devices))
    assert answers == [[1, 3, 5, 7, 9]] * 12
    assert stored(fleet) == [(device, sequence) for device in sorted(devices) for sequence in range(10)]
    counts = fleet.devices.intake.counts
    assert counts.calls == 60 and counts.windows == 120 and counts.waiting == 0
    assert counts.commits < 60


def test_what_a_device_says_is_in_its_row_when_it_is_answered(fleet: FleetService, clock: SettableClock) -> None:
    device = enroll(fleet, "pi-1").device
    told = facts(agent="2.0", tier="edge")
    sync = says(OLD, window(4, OLD, clock()), phase="checking", candidate=NEW)
    fleet.devices.sync(device, sync.model_copy(update={"facts": told}))
    with fleet.database.read() as session:
        row = session.get(Device, device)
        assert row is not None
        assert (row.running, row.slot["candidate"], row.taken, row.seen_at) == (OLD, NEW, 4, clock())
        assert (row.boot, row.tier, row.facts["agent"]) == (told.boot, "edge", "2.0")
        assert row.latest is not None and row.latest["sequence"] == 4
        started = session.scalars(select(Event.subject).where(Event.action == "device.start")).all()
    assert started == ["pi-1"]


def test_windows_that_come_twice_count_once(fleet: FleetService, clock: SettableClock) -> None:
    device = enroll(fleet, "pi-1").device
    first, second = window(0, OLD, clock()), window(1, OLD, clock())
    futures = [fleet.devices.intake.put(device, says(OLD, *held)) for held in ((first,), (first, second), (second,))]
    for future in futures:
        future.result(10)
    assert fleet.devices.sync(device, says(OLD, first, second)).taken == 1
    assert stored(fleet) == [(device, 0), (device, 1)]


def test_a_device_is_told_the_time(fleet: FleetService, clock: SettableClock) -> None:
    device = enroll(fleet, "pi-1").device
    assert fleet.devices.sync(device, says(None)).now == clock()
    clock.advance(50.0)
    assert fleet.devices.desired(device).now == clock()


def test_no_window_is_of_a_time_that_has_not_come(fleet: FleetService, clock: SettableClock) -> None:
    device = enroll(fleet, "pi-1").device
    fleet.devices.sync(device, says(OLD, window(0, OLD, clock() - 60.0), window(1, OLD, clock() + 1e6)))
    latest = fleet.devices.get(device).latest
    assert latest is not None and latest.started_at == clock()
    with fleet.database.read() as session:
        assert list(session.scalars(select(WindowRow.started_at).order_by(WindowRow.sequence))) == [
            clock() - 60.0,
            clock(),
        ]


def test_an_answer_lost_in_a_crash_loses_no_window_and_doubles_none(
    fleet: FleetService, clock: SettableClock, again: Callable[[], FleetService], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = enroll(fleet, "pi-1").device
    committed, end = [], ingest._end
    monkeypatch.setattr(ingest, "_end", lambda batch, error: committed.append(batch))  # killed behind the commit
    future = fleet.devices.intake.put(device, says(OLD, window(0, OLD, clock())))
    for _ in range(1000):
        if committed:
            break
        time.sleep(0.01)
    assert not future.done()
    monkeypatch.setattr(ingest, "_end", end)
    survivor = again()
    answer = survivor.devices.sync(device, says(OLD, window(0, OLD, clock()), window(1, OLD, clock())))
    assert answer.taken == 1
    assert stored(survivor) == [(device, 0), (device, 1)]
    end(committed[0], None)


def test_nothing_is_acknowledged_while_the_database_refuses_and_all_is_stored_behind_it(
    fleet: FleetService, clock: SettableClock
) -> None:
    device = enroll(fleet, "pi-1").device
    call = says(OLD, window(0, OLD, clock()))
    with fleet.database.write() as session:
        session.execute(text("ALTER TABLE windows RENAME TO hidden"))
    with pytest.raises(StoreError):
        fleet.devices.sync(device, call)
    with fleet.database.write() as session:
        session.execute(text("ALTER TABLE hidden RENAME TO windows"))
        assert session.scalar(select(Device.taken)) == -1
    assert fleet.devices.sync(device, call).taken == 0
    assert stored(fleet) == [(device, 0)]


def test_too_many_waiting_calls_are_refused_and_those_that_wait_are_stored(
    fleet: FleetService, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = enroll(fleet, "pi-1").device
    monkeypatch.setattr(ingest, "MAX_WAITING", 3)
    intake = Intake(fleet.database, fleet.devices.directory, clock, gather_s=0.5)
    futures = [intake.put(device, says(OLD, window(number, OLD, clock()))) for number in range(3)]
    with pytest.raises(OverloadedError, match="wait to be stored"):
        intake.put(device, says(OLD, window(3, OLD, clock())))
    for future in futures:
        future.result(10)
    assert intake.counts.refused == 1
    intake.put(device, says(OLD, window(3, OLD, clock()))).result(10)
    intake.close()
    assert [sequence for _, sequence in stored(fleet)] == [0, 1, 2, 3]


def test_too_many_windows_are_refused_though_few_calls_wait(
    fleet: FleetService, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = enroll(fleet, "pi-1").device
    monkeypatch.setattr(ingest, "MAX_WINDOWS", 5)
    intake = Intake(fleet.database, fleet.devices.directory, clock, gather_s=0.5)
    future = intake.put(device, says(OLD, *(window(number, OLD, clock()) for number in range(5))))
    with pytest.raises(OverloadedError):
        intake.put(device, says(OLD, window(5, OLD, clock())))
    future.result(10)
    intake.close()


def test_closing_stores_what_waits_and_takes_no_more(fleet: FleetService, clock: SettableClock) -> None:
    device = enroll(fleet, "pi-1").device
    intake = Intake(fleet.database, fleet.devices.directory, clock, gather_s=0.2)
    future = intake.put(device, says(OLD, window(0, OLD, clock())))
    intake.close()
    assert future.done() and stored(fleet) == [(device, 0)]
    with pytest.raises(StoreError, match="stopping"):
        intake.put(device, says(OLD))


def test_one_call_that_the_database_does_not_take_harms_no_other(fleet: FleetService, clock: SettableClock) -> None:
    if fleet.database.is_sqlite:
        pytest.skip("SQLite takes text with NUL")
    good, bad = enroll(fleet, "pi-1").device, enroll(fleet, "pi-2").device
    intake = Intake(fleet.database, fleet.devices.directory, clock, gather_s=0.2)
    poisoned = intake.put(bad, says(OLD, window(0, OLD, clock(), plan="whole\0")))
    futures = [intake.put(good, says(OLD, window(number, OLD, clock()))) for number in range(3)]
    for future in futures:
        future.result(10)
    with pytest.raises(UsageError):
        poisoned.result(10)
    intake.close()
    assert stored(fleet) == [(good, 0), (good, 1), (good, 2)]
    assert intake.counts.failed == 1


def test_another_worker_hears_of_orders_of_groups_and_of_removal(
    fleet: FleetService, again: Callable[[], FleetService]
) -> None:
    other = again()
    enrolled = enroll(fleet, "pi-1", {"board": "rpi4"})
    assert other.devices.identify(enrolled.token) == enrolled.device  # not refreshed: looked for
    before = other.devices.desired(enrolled.device)
    fleet.groups.put(ADMIN, "pi", GroupOrder(selector="board=rpi4", interval_s=7.0, compare_share=0.5))
    other.devices.directory.refresh()
    heard = other.devices.desired(enrolled.device)
    assert (before.interval_s, heard.interval_s, heard.compare_share) == (30.0, 7.0, 0.5)
    assert heard.generation == before.generation + 1
    fleet.groups.remove(ADMIN, "pi")
    other.devices.directory.refresh()
    assert other.devices.desired(enrolled.device).interval_s == 30.0
    fleet.devices.change(ADMIN, "pi-1", DeviceChange(standing="revoked"))
    other.devices.directory.refresh()
    with pytest.raises(ForbiddenError):
        other.devices.identify(enrolled.token)
    fleet.devices.remove(ADMIN, "pi-1")
    other.devices.directory.refresh()
    with pytest.raises(AuthenticationError):
        other.devices.identify(enrolled.token)


def test_two_workers_that_store_for_the_same_device_agree_on_what_is_taken(
    fleet: FleetService, again: Callable[[], FleetService], clock: SettableClock
) -> None:
    other = again()
    device = enroll(fleet, "pi-1").device
    assert fleet.devices.sync(device, says(OLD, window(0, OLD, clock()), window(1, OLD, clock()))).taken == 1
    late = other.devices.sync(device, says(OLD, window(1, OLD, clock()), window(2, OLD, clock())))
    assert late.taken == 2
    assert stored(fleet) == [(device, 0), (device, 1), (device, 2)]
    with fleet.database.read() as session:
        assert session.scalar(select(func.count()).select_from(WindowRow)) == 3
        assert session.scalar(select(Device.taken)) == 2
    if fleet.database.is_sqlite:
        return  # has one worker alone
    for service in (fleet, other):
        service.devices.close()
    seen = fleet.telemetry.of_group("", clock() - 600, clock() + 1, 300.0)
    assert sum(span.answered for span in seen.spans) == 30, "what came twice is in the sums once"

"""What is old goes, in its own time for each kind; what is young stays."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from sqlalchemy import func, select, text

from edgekit.fleet.service import FleetService
from edgekit.fleet.service import retention as module
from edgekit.fleet.service.retention import DAY_S, Keeping, Retention
from edgekit.fleet.store.tables import Base, Event, Invitation, Repeated, WindowRow
from tests.fleet.conftest import SettableClock


def fill(fleet: FleetService, at: float, count: int, front: str) -> None:
    """So many rows of each kind, from that time."""
    with fleet.database.write() as session:
        for number in range(count):
            key = f"{front}{number}"
            session.add_all(
                [
                    WindowRow(
                        device=key,
                        sequence=number,
                        started_at=at,
                        seconds=30.0,
                        digest="a" * 64,
                        answered=1,
                        errors=0,
                        content={},
                    ),
                    Event(at=at, actor="ada", action="x", subject=key, detail={}),
                    Repeated(key=key, fingerprint="f", status=200, body="", at=at),
                    Invitation(id=key, token_hash=key, labels={}, uses_left=1, ends_at=at),
                ]
            )


def count(fleet: FleetService, what: type[Base]) -> int:
    query = select(func.count()).select_from(what)
    with fleet.database.read() as session:  # the service's own lines stand beside those of `fill`
        return session.scalar(query.where(Event.action == "x") if what is Event else query) or 0


def test_each_kind_goes_in_its_own_time(fleet: FleetService, clock: SettableClock) -> None:
    keeping = Keeping(windows_s=10 * DAY_S, events_s=100 * DAY_S, answers_s=DAY_S, invitations_s=30 * DAY_S)
    retention = Retention(fleet.core, keeping)
    fill(fleet, clock(), 3, "old")
    gone = []
    for days in (0.9, 1.1, 10.1, 30.1, 100.1):
        now = SettableClock(clock() + days * DAY_S)
        gone.append(Retention(replace(fleet.core, now=now), keeping).prune())
    assert [one["repeated"] for one in gone] == [0, 3, 0, 0, 0]
    assert [one["windows"] for one in gone] == [0, 0, 3, 0, 0]
    assert [one["invitations"] for one in gone] == [0, 0, 0, 3, 0]
    assert [one["events"] > 0 for one in gone] == [False, False, False, False, True] and count(fleet, Event) == 0
    assert retention.prune() == dict.fromkeys(gone[0], 0)


def test_the_young_stay(fleet: FleetService, clock: SettableClock) -> None:
    fill(fleet, clock(), 2, "old")
    clock.advance(20 * DAY_S)
    fill(fleet, clock(), 3, "new")
    assert fleet.retention.prune()["windows"] == 2
    assert count(fleet, WindowRow) == 3
    assert count(fleet, Event) == 5  # kept for longer by default


def test_many_go_in_transactions_of_bounded_size(
    fleet: FleetService, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 4)
    monkeypatch.setattr(module, "MOST", 8)
    fill(fleet, clock(), 11, "old")
    clock.advance(20 * DAY_S)
    assert [fleet.retention.prune()["windows"] for _ in range(3)] == [8, 3, 0]
    assert count(fleet, WindowRow) == 0


def test_zero_keeps_for_ever(fleet: FleetService, clock: SettableClock) -> None:
    fill(fleet, clock(), 1, "old")
    clock.advance(10_000 * DAY_S)
    assert Retention(fleet.core, Keeping(**dict.fromkeys((one.name for one in fields(Keeping)), 0.0))).prune() == {}
    assert count(fleet, WindowRow) == count(fleet, Event) == count(fleet, Repeated) == 1


def test_of_more_windows_than_are_kept_the_oldest_go(
    fleet: FleetService, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 4)
    monkeypatch.setattr(module, "MOST", 8)
    for hour in range(4):
        fill(fleet, clock() + 3600 * hour, 5, f"hour{hour}-")
    retention = Retention(fleet.core, Keeping(windows_most=7))
    gone = []
    for _ in range(3):
        settle(fleet)
        gone.append(retention.prune()["windows"])
    assert gone == [8, 5, 0]
    with fleet.database.read() as session:
        left = session.scalars(select(WindowRow.device).order_by(WindowRow.device)).all()
    assert left[2:] == [f"hour3-{number}" for number in range(5)] and all(one.startswith("hour2-") for one in left[:2])


def test_windows_without_a_bound_stay_for_their_time(fleet: FleetService, clock: SettableClock) -> None:
    fill(fleet, clock(), 5, "one")
    settle(fleet)
    assert Retention(fleet.core, Keeping(windows_most=0)).prune()["windows"] == 0
    assert Retention(fleet.core, Keeping(windows_most=4)).prune()["windows"] == 1


def settle(fleet: FleetService) -> None:
    """PostgreSQL tells how many rows a table has a second after a transaction; it analyses now what it has."""
    if not fleet.database.is_sqlite:
        with fleet.database.write() as session:
            session.execute(text("ANALYZE windows"))

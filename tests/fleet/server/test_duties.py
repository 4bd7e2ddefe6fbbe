"""What a worker does by itself: leads where no other does, hears of the others, and goes on behind trouble."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.errors import StoreError
from edgekit.fleet.protocol.people import GroupOrder
from edgekit.fleet.server.duties import on_duty
from edgekit.fleet.server.metrics import Metrics
from edgekit.fleet.server.waiting import Waiters
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.retention import MOST
from edgekit.fleet.store.lease import Lease
from tests.fleet.acting import ADMIN, enroll

EVERY_S = 0.01


async def until(holds: Callable[[], object]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(EVERY_S)
    raise AssertionError("it did not come")


def on_duty_for(service: FleetService, waiters: Waiters, work: Callable[[], object]) -> None:
    """Until `work` holds."""

    async def run() -> None:
        async with on_duty(
            service, waiters, Metrics(service, waiters), advance_every_s=EVERY_S, listen_every_s=EVERY_S
        ):
            await until(work)

    asyncio.run(run())


@pytest.fixture
def steps(fleet: FleetService, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every step of rollouts."""
    made: list[int] = []
    monkeypatch.setattr(fleet.rollouts, "advance", lambda: made.append(1))
    return made


def test_who_holds_the_lease_leads_and_frees_it_at_the_end(fleet: FleetService, steps: list[int]) -> None:
    other = Lease(fleet.database, "leader", now=fleet.core.now)
    assert other.take()
    asked: list[bool] = []
    take = fleet.lease.take

    def taken() -> bool:
        asked.append(take())
        return asked[-1]

    fleet.lease.take = taken  # type: ignore[method-assign]
    on_duty_for(fleet, Waiters(), lambda: len(asked) > 3)
    assert not any(asked) and steps == []
    other.leave()
    on_duty_for(fleet, Waiters(), lambda: len(steps) > 3)
    assert other.take()


def test_a_device_that_waits_here_hears_what_another_worker_changed(
    fleet: FleetService, database_url: str, tmp_path: Path
) -> None:
    other = FleetService(tmp_path / "data", database_url, now=fleet.core.now)
    a, b = (enroll(fleet, name, {"board": name}).device for name in ("a", "b"))
    waiters = Waiters()

    async def run() -> tuple[bool, bool]:
        async with on_duty(fleet, waiters, Metrics(fleet, waiters), advance_every_s=60.0, listen_every_s=EVERY_S):
            await until(lambda: fleet.devices.directory.tick >= 0)
            await asyncio.sleep(5 * EVERY_S)
            futures = {device: waiters.expect(device) for device in (a, b)}
            await asyncio.to_thread(other.groups.put, ADMIN, "g", GroupOrder(selector="board=a"))
            await until(futures[a].done)
            return futures[a].result(), futures[b].done()

    assert asyncio.run(run()) == (True, False)
    other.close()


def test_news_that_somebody_else_here_read_first_still_wake_who_waits(
    fleet: FleetService, database_url: str, tmp_path: Path
) -> None:
    """A request that looks into the database takes the change over before the listener comes round."""
    other = FleetService(tmp_path / "data", database_url, now=fleet.core.now)
    device = enroll(fleet, "a", {"board": "a"}).device
    fleet.devices.directory.refresh()
    fleet.devices.directory.news()
    waiters = Waiters()

    async def run() -> bool:
        future = waiters.expect(device)
        other.groups.put(ADMIN, "g", GroupOrder(selector="board=a"))
        fleet.devices.directory.refresh()
        async with on_duty(fleet, waiters, Metrics(fleet, waiters), advance_every_s=60.0, listen_every_s=EVERY_S):
            await until(future.done)
        return future.result()

    assert asyncio.run(run())
    other.close()


def test_trouble_is_told_once_and_so_is_its_end(
    fleet: FleetService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def advance() -> None:
        calls.append(1)
        if len(calls) <= 5:
            raise StoreError("the database is down")
        if len(calls) == 6:
            raise ZeroDivisionError

    monkeypatch.setattr(fleet.rollouts, "advance", advance)
    with caplog.at_level(logging.WARNING, "edgekit"):
        on_duty_for(fleet, Waiters(), lambda: len(calls) > 9)
    told = [record.getMessage() for record in caplog.records if "trust" not in record.getMessage()]
    assert told == [
        "rollouts stand still: the database is down",
        "rollouts stand still",
        "it works again, after: ZeroDivisionError",
    ]


def test_old_rows_go_without_a_pause_until_none_is_left(
    fleet: FleetService, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [{"windows": MOST}, {"windows": MOST}, {"windows": 5}]
    pruned: list[int] = []

    def prune() -> dict[str, int]:
        pruned.append(len(steps))
        return left.pop(0)

    monkeypatch.setattr(fleet.retention, "prune", prune)
    on_duty_for(fleet, Waiters(), lambda: len(steps) > 8)
    assert left == [] and pruned == [1, 2, 3]

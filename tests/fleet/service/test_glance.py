from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event, update

from edgekit.errors import AbsentError
from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.protocol.people import DeviceChange, GroupOrder
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.tables import Device
from tests.fleet.conftest import SettableClock
from tests.fleet.web.scene import enroll, say

NEW, OLD = "a" * 64, "b" * 64


@contextmanager
def statements(service: FleetService) -> Iterator[list[str]]:
    """What the database is asked."""
    found: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        found.append(statement)

    event.listen(service.database.engine, "before_cursor_execute", note)
    yield found
    event.remove(service.database.engine, "before_cursor_execute", note)


def want(service: FleetService, device: str, digest: str | None) -> None:
    with service.database.write() as session:
        session.execute(update(Device).where(Device.id == device).values(wanted=digest))


def test_each_device_is_in_the_state_that_people_mean(fleet: FleetService, admin: Actor, clock: SettableClock) -> None:
    names = ("right", "moving", "failed", "went-back", "idle", "never", "late", "revoked")
    devices = {name: enroll(fleet, name) for name in names}
    for name in ("right", "moving", "failed", "late", "revoked"):
        want(fleet, devices[name], NEW)
    want(fleet, devices["went-back"], OLD)
    say(fleet, devices["late"], Slot(running=NEW))
    clock.advance(91)
    say(fleet, devices["right"], Slot(running=NEW))
    say(fleet, devices["moving"], Slot(running=OLD, candidate=NEW, phase="downloading"))
    say(fleet, devices["failed"], Slot(running=OLD, candidate=NEW, phase="failed", reason="no"))
    say(fleet, devices["went-back"], Slot(running=OLD, candidate=NEW, phase="failed", reason="no"))
    say(fleet, devices["idle"], Slot())
    say(fleet, devices["revoked"], Slot(running=NEW))
    fleet.devices.change(admin, "revoked", DeviceChange(standing="revoked"))
    states = {cell.name: cell.state for cell in fleet.glances.now().cells}
    assert states == {
        "right": "right",
        "moving": "moving",
        "failed": "failed",
        "went-back": "right",
        "idle": "idle",
        "never": "lost",
        "late": "lost",
        "revoked": "revoked",
    }


def test_a_device_is_lost_by_the_interval_of_its_groups(
    fleet: FleetService, admin: Actor, clock: SettableClock
) -> None:
    for name, site in (("slow-1", "far"), ("quick-1", "near")):
        say(fleet, enroll(fleet, name, site=site), Slot())
    fleet.groups.put(admin, "far", GroupOrder(selector="site=far", interval_s=300))
    clock.advance(200)
    assert {cell.name: cell.state for cell in fleet.glances.now().cells} == {"slow-1": "idle", "quick-1": "lost"}


def test_groups_hold_their_active_devices_and_the_rest_is_loose(fleet: FleetService, admin: Actor) -> None:
    for name, labels in (("b", {"site": "x"}), ("a", {"site": "x"}), ("gone", {"site": "x"}), ("loose", {})):
        enroll(fleet, name, **labels)
    fleet.devices.change(admin, "gone", DeviceChange(standing="revoked"))
    fleet.groups.put(admin, "x", GroupOrder(selector="site=x"))
    fleet.groups.put(admin, "none", GroupOrder(selector="site=y"))
    glance = fleet.glances.now()
    assert [cell.name for cell in glance.group("x").cells] == ["a", "b"]
    assert glance.group("none").cells == () and [cell.name for cell in glance.loose] == ["loose"]
    assert len(glance.cells) == 4 and glance.counts()["revoked"] == 1
    view = glance.group("x").view
    assert (view.devices, view.connected, view.running) == (2, 0, {"": 2})
    with pytest.raises(AbsentError):
        glance.group("nobody")


def test_a_group_may_be_of_names(fleet: FleetService, admin: Actor) -> None:
    for name in ("a", "b"):
        enroll(fleet, name, site="x")
    fleet.groups.put(admin, "one", GroupOrder(selector="name=b"))
    fleet.groups.put(admin, "both", GroupOrder(selector="site=x,tier=device"))
    glance = fleet.glances.now()
    assert [cell.name for cell in glance.group("one").cells] == ["b"]
    assert [cell.name for cell in glance.group("both").cells] == ["a", "b"]
    assert glance.cells[0].labels == {"site": "x"} and glance.loose == ()


def test_a_glance_asks_the_database_as_often_for_many_devices_as_for_one(fleet: FleetService, admin: Actor) -> None:
    asked = []
    for total in (1, 6):
        for place in range(len(fleet.glances.now().cells), total):
            enroll(fleet, f"pi-{place}", site=f"s{place}")
            fleet.groups.put(admin, f"g{place}", GroupOrder(selector=f"site=s{place}"))
        fleet.glances.forget()
        with statements(fleet) as found:
            assert len(fleet.glances.now().cells) == total
        asked.append(len(found))
    assert asked[0] == asked[1]


def test_a_glance_is_shared_until_it_is_forgotten(fleet: FleetService) -> None:
    first = fleet.glances.now()
    enroll(fleet, "pi-1")
    assert fleet.glances.now() is first
    fleet.glances.forget()
    assert [cell.name for cell in fleet.glances.now().cells] == ["pi-1"]

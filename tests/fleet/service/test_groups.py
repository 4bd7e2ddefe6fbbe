"""Groups: selectors by name, what their devices run, and who hears of a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import AbsentError, ConflictError, ForbiddenError, UsageError
from edgekit.fleet.protocol.people import DeviceChange, GroupOrder
from edgekit.fleet.protocol.rollouts import RolloutOrder
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from tests.fleet.acting import ADMIN, enroll, push, says
from tests.fleet.bundles import make_bundle
from tests.fleet.conftest import SettableClock

DIGEST = "a" * 64


def put(fleet: FleetService, name: str, selector: str, version: int | None = None, **others: float) -> int:
    return fleet.groups.put(ADMIN, name, GroupOrder(selector=selector, **others), version).version


def test_a_group_counts_those_that_it_holds(fleet: FleetService, clock: SettableClock) -> None:
    put(fleet, "pi", "board=rpi4")
    for name, board in (("a", "rpi4"), ("b", "rpi4"), ("c", "nano"), ("d", "rpi4")):
        device = enroll(fleet, name, {"board": board}).device
        if name != "d":
            fleet.devices.sync(device, says(DIGEST if name != "b" else None))
    fleet.devices.change(ADMIN, "d", DeviceChange(standing="revoked"))
    view = fleet.groups.get("pi")
    assert (view.devices, view.connected) == (2, 2) and view.running == {DIGEST: 1, "": 1}
    clock.advance(3 * view.interval_s + 1)
    assert fleet.groups.get("pi").connected == 0
    assert [one.name for one in fleet.groups.all()] == ["pi"]


def test_a_selector_that_cannot_be_is_refused(fleet: FleetService) -> None:
    with pytest.raises(UsageError):
        put(fleet, "pi", "board==")
    assert fleet.groups.all() == ()


def test_settings_reach_the_devices_the_shortest_interval_and_the_largest_share(fleet: FleetService) -> None:
    device = enroll(fleet, "a", {"board": "rpi4", "site": "lab"}).device
    known = fleet.devices.desired(device).generation
    put(fleet, "pi", "board=rpi4", interval_s=60.0, compare_share=0.5)
    put(fleet, "lab", "site=lab", interval_s=10.0, compare_share=0.1)
    desired = fleet.devices.desired(device)
    assert (desired.interval_s, desired.compare_share) == (10.0, 0.5) and desired.generation > known


def test_who_leaves_a_group_by_its_selector_hears_of_it(fleet: FleetService) -> None:
    a, b = (enroll(fleet, name, {"board": name}).device for name in ("x", "y"))
    put(fleet, "g", "board=x", interval_s=5.0)
    known = {device: fleet.devices.desired(device).generation for device in (a, b)}
    told: list[str] = []
    fleet.core.changed.append(told.extend)
    put(fleet, "g", "board=y", interval_s=5.0)
    assert sorted(told) == sorted((a, b))
    assert all(fleet.devices.desired(device).generation > known[device] for device in (a, b))
    assert (fleet.devices.desired(a).interval_s, fleet.devices.desired(b).interval_s) == (30.0, 5.0)


def test_a_change_of_what_was_changed_since_is_refused(fleet: FleetService) -> None:
    assert put(fleet, "pi", "board=rpi4", version=0) == 1
    assert put(fleet, "pi", "board=rpi5", version=1) == 2
    for version in (0, 1, 3):
        with pytest.raises(ConflictError, match="has changed"):
            put(fleet, "pi", "board=nano", version=version)
    assert fleet.groups.get("pi").selector == "board=rpi5"


def test_a_removed_group_is_gone_and_its_devices_stay(fleet: FleetService) -> None:
    device = enroll(fleet, "a", {"board": "rpi4"}).device
    put(fleet, "pi", "board=rpi4", interval_s=5.0)
    fleet.groups.remove(ADMIN, "pi")
    assert fleet.devices.get("a").id == device and fleet.devices.desired(device).interval_s == 30.0
    for call in (fleet.groups.get, lambda name: fleet.groups.remove(ADMIN, name)):
        with pytest.raises(AbsentError, match="none yet"):
            call("pi")


def test_a_group_in_which_a_rollout_goes_on_is_not_removed(fleet: FleetService, tmp_path: Path) -> None:
    digest = push(fleet, make_bundle(tmp_path / "net", as_directory=True)).digest
    enroll(fleet, "a", {"board": "rpi4"})
    put(fleet, "pi", "board=rpi4")
    fleet.rollouts.start(ADMIN, RolloutOrder(bundle=digest, group="pi"))
    with pytest.raises(ConflictError, match="goes on"):
        fleet.groups.remove(ADMIN, "pi")
    assert fleet.groups.get("pi").devices == 1


def test_viewers_change_no_group(fleet: FleetService) -> None:
    viewer = Actor("bob", "viewer")
    with pytest.raises(ForbiddenError):
        fleet.groups.put(viewer, "pi", GroupOrder(selector="board=rpi4"))
    with pytest.raises(ForbiddenError):
        fleet.groups.remove(viewer, "pi")
    assert fleet.groups.all() == ()


def test_an_unknown_group_names_those_there_are(fleet: FleetService) -> None:
    put(fleet, "pi", "board=rpi4")
    with pytest.raises(AbsentError, match="no group pie; there are: pi"):
        fleet.groups.get("pie")

"""Devices: enrolled by invitation, identified, changed, revoked, removed, listed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select

from edgekit.errors import AbsentError, AuthenticationError, ConflictError, EdgekitError, ForbiddenError, UsageError
from edgekit.fleet.protocol.agents import Enrolment
from edgekit.fleet.protocol.people import DeviceChange, GroupOrder, InvitationOrder
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.tables import Device, Event
from edgekit.fleet.trust.authority import certificate_request
from tests.fleet.acting import ADMIN, KEY, enroll, facts, says, window
from tests.fleet.conftest import SettableClock

DIGEST = "a" * 64


def invite(fleet: FleetService, **order: object) -> str:
    return fleet.devices.invite(ADMIN, InvitationOrder.model_validate(order)).token


def enrolment(token: str, name: str) -> Enrolment:
    return Enrolment(token=token, name=name, request=certificate_request(KEY, name), facts=facts())


def test_an_invitation_counts_so_often_and_so_long(fleet: FleetService, clock: SettableClock) -> None:
    token = invite(fleet, uses=2, valid_s=60.0, labels={"board": "rpi4"})
    for name in ("a", "b"):
        fleet.devices.enroll(enrolment(token, name))
    with pytest.raises(AuthenticationError, match="used up"):
        fleet.devices.enroll(enrolment(token, "c"))
    token = invite(fleet, valid_s=60.0)
    clock.advance(61.0)
    with pytest.raises(AuthenticationError, match="too old"):
        fleet.devices.enroll(enrolment(token, "c"))
    assert [one.labels for one in fleet.devices.list().items] == [{"board": "rpi4"}] * 2


def test_devices_that_enrol_at_once_share_no_use_and_no_name(fleet: FleetService) -> None:
    token = invite(fleet, uses=3)

    def come(name: str) -> str:
        try:
            return fleet.devices.enroll(enrolment(token, name)).device
        except EdgekitError as error:
            return type(error).__name__

    with ThreadPoolExecutor(8) as threads:
        came = list(threads.map(come, ["a", "a", "b", "c", "d", "e"]))
    enrolled = [one for one in came if len(one) == 32]
    assert len(enrolled) == 3 == fleet.devices.count()[0]
    assert len({one.name for one in fleet.devices.list().items}) == 3


def test_a_taken_name_and_a_wrong_request_cost_no_use(fleet: FleetService) -> None:
    token = invite(fleet, uses=1)
    enroll(fleet, "a")
    with pytest.raises(ConflictError, match="there is a device a"):
        fleet.devices.enroll(enrolment(token, "a"))
    with pytest.raises(UsageError):
        fleet.devices.enroll(enrolment(token, "b").model_copy(update={"request": "nothing"}))
    assert fleet.devices.enroll(enrolment(token, "b")).device


def test_a_device_is_known_by_its_token_or_its_certificate(fleet: FleetService) -> None:
    enrolled = enroll(fleet, "a")
    with fleet.database.read() as session:
        serial = session.scalar(select(Device.certificate_serial))
    assert serial is not None
    assert fleet.devices.identify(enrolled.token) == enrolled.device == fleet.devices.identify("", serial)
    for token, number in (("ekd_x", ""), ("", "abc"), ("", serial + "0")):
        with pytest.raises(AuthenticationError):
            fleet.devices.identify(token, number)


def test_a_revoked_device_is_heard_no_more_until_it_is_active_again(fleet: FleetService) -> None:
    enrolled = enroll(fleet, "a")
    fleet.devices.change(ADMIN, "a", DeviceChange(standing="revoked"))
    with pytest.raises(ForbiddenError, match="revoked"):
        fleet.devices.identify(enrolled.token)
    fleet.devices.change(ADMIN, "a", DeviceChange(standing="active"))
    assert fleet.devices.identify(enrolled.token) == enrolled.device


def test_a_removed_device_is_unknown_and_its_name_is_free(fleet: FleetService) -> None:
    enrolled = enroll(fleet, "a")
    fleet.devices.sync(enrolled.device, says(DIGEST))
    fleet.devices.remove(ADMIN, "a")
    with pytest.raises(AuthenticationError):
        fleet.devices.identify(enrolled.token)
    with pytest.raises(AuthenticationError):
        fleet.devices.sync(enrolled.device, says(DIGEST))
    with pytest.raises(AbsentError):
        fleet.devices.get("a")
    assert enroll(fleet, "a").device != enrolled.device


def test_what_it_says_is_shown(fleet: FleetService, clock: SettableClock) -> None:
    device = enroll(fleet, "a", {"board": "rpi4"}).device
    assert not fleet.devices.get("a").connected
    fleet.devices.sync(device, says(DIGEST, window(0, DIGEST, clock()), checked=4, right=3, phase="failed", reason="x"))
    view = fleet.devices.get(device)
    assert view.connected and view.seen_at == clock() and view.slot.running == DIGEST
    assert (view.slot.checked, view.slot.right, view.slot.reason) == (4, 3, "x")
    assert view.latest is not None and view.latest.sequence == 0
    clock.advance(91.0)
    assert not fleet.devices.get("a").connected


def test_who_is_connected_is_counted_by_the_interval_of_each(fleet: FleetService, clock: SettableClock) -> None:
    for name, interval_s in (("slow", 300.0), ("quick", 5.0), ("plain", None)):
        fleet.devices.sync(enroll(fleet, name, {"site": name}).device, says(DIGEST))
        if interval_s is not None:
            fleet.groups.put(ADMIN, name, GroupOrder(selector=f"site={name}", interval_s=interval_s))
    for seconds, connected in ((10.0, {"slow", "quick", "plain"}), (20.0, {"slow", "plain"}), (100.0, {"slow"})):
        clock.advance(seconds)
        views = fleet.devices.list().items
        assert {view.name for view in views if view.connected} == connected
        assert all(fleet.devices.get(view.name).connected == view.connected for view in views)
        assert fleet.devices.count() == (3, len(connected)) == (fleet.overview().devices, fleet.overview().connected)


def test_labels_are_changed_as_they_were_read_or_not_at_all(fleet: FleetService) -> None:
    device = enroll(fleet, "a", {"board": "rpi4"}).device
    version = fleet.devices.get("a").version
    changed = fleet.devices.change(ADMIN, "a", DeviceChange(labels={"site": "lab"}), version)
    assert changed.labels == {"site": "lab"} == fleet.devices.desired(device).labels
    with pytest.raises(ConflictError, match="has changed"):
        fleet.devices.change(ADMIN, "a", DeviceChange(labels={}), version)
    assert fleet.devices.get("a").labels == {"site": "lab"}
    fleet.devices.change(ADMIN, "a", DeviceChange())
    assert fleet.devices.get("a").labels == {"site": "lab"}


def test_two_that_change_the_same_version_at_once_leave_one(fleet: FleetService) -> None:
    enroll(fleet, "a")
    version = fleet.devices.get("a").version

    def change(number: int) -> bool:
        try:
            fleet.devices.change(ADMIN, "a", DeviceChange(labels={"n": str(number)}), version)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(change, range(4))) == 1


def test_devices_are_listed_by_name_by_selector_and_by_pages(fleet: FleetService) -> None:
    for number in range(7):
        enroll(fleet, f"d{number}", {"board": "rpi4" if number % 2 else "nano"})
    names, after = [], None
    while True:
        page = fleet.devices.list("board=rpi4", after, limit=2)
        names += [one.name for one in page.items]
        after = page.next
        if after is None:
            break
    assert names == ["d1", "d3", "d5"]
    with pytest.raises(UsageError):
        fleet.devices.list("board==")


def test_viewers_change_nothing(fleet: FleetService) -> None:
    viewer = Actor("bob", "viewer")
    enroll(fleet, "a")
    for call in (
        lambda: fleet.devices.invite(viewer, InvitationOrder()),
        lambda: fleet.devices.change(viewer, "a", DeviceChange(labels={})),
        lambda: fleet.devices.remove(viewer, "a"),
    ):
        with pytest.raises(ForbiddenError):
            call()
    assert fleet.devices.count()[0] == 1


def test_no_token_is_kept_or_told(fleet: FleetService) -> None:
    token = invite(fleet)
    enrolled = fleet.devices.enroll(enrolment(token, "a"))
    with fleet.database.read() as session:
        held = " ".join(str(vars(row)) for row in (*session.scalars(select(Event)), *session.scalars(select(Device))))
        lines = session.scalar(select(func.count()).select_from(Event))
    assert lines and token not in held and enrolled.token not in held

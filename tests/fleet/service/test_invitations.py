from __future__ import annotations

import pytest

from edgekit.errors import AbsentError, ForbiddenError
from edgekit.fleet.protocol.people import InvitationOrder
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from tests.fleet.acting import ADMIN, enroll
from tests.fleet.conftest import SettableClock


def test_invitations_are_listed_until_they_end_or_are_taken_back(
    fleet: FleetService, admin: Actor, clock: SettableClock
) -> None:
    late = fleet.devices.invite(admin, InvitationOrder(labels={"a": "1"}, uses=3, valid_s=600))
    soon = fleet.devices.invite(admin, InvitationOrder(valid_s=60))
    assert [one.id for one in fleet.invitations.open()] == [soon.id, late.id]
    clock.advance(61)
    (left,) = fleet.invitations.open()
    assert (left.labels, left.uses_left) == ({"a": "1"}, 3)
    with pytest.raises(ForbiddenError):
        fleet.invitations.withdraw(Actor("eve", "viewer"), late.id)
    fleet.invitations.withdraw(admin, late.id)
    assert fleet.invitations.open() == ()
    with pytest.raises(AbsentError):
        fleet.invitations.withdraw(admin, late.id)


def test_an_invitation_tells_which_device_it_is_for(fleet: FleetService) -> None:
    enroll(fleet, "pi-1")
    fleet.devices.invite(ADMIN, InvitationOrder(device="pi-1", valid_s=10))
    fleet.devices.invite(ADMIN, InvitationOrder(valid_s=20))
    assert [one.device for one in fleet.invitations.open()] == ["pi-1", None]

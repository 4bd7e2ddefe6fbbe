from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from edgekit.errors import AbsentError, AuthenticationError, ConflictError, ForbiddenError, UsageError
from edgekit.fleet.protocol.agents import Enrolled, Enrolment, Renewal, Sync
from edgekit.fleet.protocol.people import DeviceChange, InvitationOrder, PersonOrder
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.identities import NOTE_EVERY_S
from edgekit.fleet.store.tables import Device
from edgekit.fleet.trust.authority import certificate_request
from tests.fleet.acting import ADMIN, KEY, enroll, facts
from tests.fleet.conftest import SettableClock

DAY_S = 86_400.0


def serial_of(enrolled: Enrolled) -> str:
    return f"{x509.load_pem_x509_certificate(enrolled.certificate.encode()).serial_number:x}"


def request(name: str = "pi-1") -> str:
    return certificate_request(KEY, name)


def actions(fleet: FleetService, subject: str = "pi-1") -> list[str]:
    return [event.action for event in reversed(fleet.core.events(subject=subject).items)]


@dataclass
class Agent:
    """What a started agent says."""

    fleet: FleetService
    device: str

    def __post_init__(self) -> None:
        self.about = facts()

    def start(self) -> None:
        self.fleet.devices.sync(self.device, Sync(facts=self.about, boot=self.about.boot))

    def sync(self) -> None:
        self.fleet.devices.sync(self.device, Sync(boot=self.about.boot))


def test_a_renewed_certificate_makes_the_one_before_worthless_once_it_is_used(fleet: FleetService) -> None:
    first = enroll(fleet, "pi-1")
    second = fleet.devices.renew(first.device, Renewal(request=request()), first.token)
    assert fleet.devices.identify(serial=serial_of(first)) == first.device
    assert fleet.devices.identify(serial=serial_of(second)) == first.device
    with pytest.raises(AuthenticationError):
        fleet.devices.identify(serial=serial_of(first))
    assert fleet.devices.identify(serial=serial_of(second)) == first.device
    assert actions(fleet) == ["device.enroll", "device.renew"]
    assert fleet.devices.get("pi-1").certificate_ends_at == pytest.approx(
        x509.load_pem_x509_certificate(second.certificate.encode()).not_valid_after_utc.timestamp()
    )


def test_a_renewal_whose_answer_was_lost_locks_nobody_out(fleet: FleetService) -> None:
    first = enroll(fleet, "pi-1")
    lost = [fleet.devices.renew(first.device, Renewal(request=request()), first.token) for _ in range(3)]
    assert fleet.devices.identify(serial=serial_of(first)) == first.device
    last = fleet.devices.renew(first.device, Renewal(request=request()), first.token)
    for one in lost:  # only the last that was issued can still come to count
        with pytest.raises(AuthenticationError):
            fleet.devices.identify(serial=serial_of(one))
    assert fleet.devices.identify(serial=serial_of(last)) == first.device


def test_another_service_over_the_same_database_knows_a_renewed_certificate(
    fleet: FleetService, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = enroll(fleet, "pi-1")
    other = FleetService(fleet.core.authority.key_path.parent.parent, database_url)
    try:
        second = fleet.devices.renew(first.device, Renewal(request=request()), first.token)
        assert other.devices.identify(serial=serial_of(second)) == first.device
        fleet.devices.directory.refresh()
        with pytest.raises(AuthenticationError):
            fleet.devices.identify(serial=serial_of(first))
    finally:
        other.close()


def test_a_renewal_keeps_the_token_of_loopback(fleet: FleetService) -> None:
    first = enroll(fleet, "pi-1")
    assert fleet.devices.renew(first.device, Renewal(request=request()), first.token).token == ""
    assert fleet.devices.identify(first.token) == first.device


def test_a_request_that_is_none_renews_nothing(fleet: FleetService) -> None:
    first = enroll(fleet, "pi-1")
    with pytest.raises(UsageError):
        fleet.devices.renew(first.device, Renewal(request="nothing"), first.token)
    assert fleet.devices.identify(serial=serial_of(first)) == first.device


def test_revocation_counts_at_once_and_for_every_proof(fleet: FleetService) -> None:
    first = enroll(fleet, "pi-1")
    second = fleet.devices.renew(first.device, Renewal(request=request()), first.token)
    fleet.devices.change(ADMIN, "pi-1", DeviceChange(standing="revoked"))
    for proof in ({"token": first.token}, {"serial": serial_of(first)}, {"serial": serial_of(second)}):
        with pytest.raises(ForbiddenError, match="revoked"):
            fleet.devices.identify(**proof)
    with pytest.raises(ForbiddenError, match="revoked"):
        fleet.devices.desired(first.device)
    fleet.devices.change(ADMIN, "pi-1", DeviceChange(standing="active"))
    assert fleet.devices.identify(first.token) == first.device


def test_a_removed_device_is_nobody(fleet: FleetService) -> None:
    first = enroll(fleet, "pi-1")
    fleet.devices.remove(ADMIN, "pi-1")
    with pytest.raises(AuthenticationError):
        fleet.devices.identify(serial=serial_of(first))
    with pytest.raises(AuthenticationError):
        fleet.devices.identify(first.token)


def test_a_name_is_given_once(fleet: FleetService) -> None:
    enroll(fleet, "pi-1")
    token = fleet.devices.invite(ADMIN, InvitationOrder()).token
    with pytest.raises(ConflictError, match="there is a device pi-1"):
        fleet.devices.enroll(Enrolment(token=token, name="pi-1", request=request(), facts=facts()))
    # What failed has not spent the token.
    fleet.devices.enroll(Enrolment(token=token, name="pi-2", request=request(), facts=facts()))


def test_an_invitation_counts_as_often_and_as_long_as_it_says(fleet: FleetService, clock: SettableClock) -> None:
    token = fleet.devices.invite(ADMIN, InvitationOrder(uses=2, valid_s=3600)).token
    for name in ("pi-1", "pi-2"):
        fleet.devices.enroll(Enrolment(token=token, name=name, request=request(name), facts=facts()))
    with pytest.raises(AuthenticationError, match="used up"):
        fleet.devices.enroll(Enrolment(token=token, name="pi-3", request=request("pi-3"), facts=facts()))
    token = fleet.devices.invite(ADMIN, InvitationOrder(valid_s=3600)).token
    clock.advance(3601)
    with pytest.raises(AuthenticationError, match="too old"):
        fleet.devices.enroll(Enrolment(token=token, name="pi-3", request=request("pi-3"), facts=facts()))


def test_devices_that_enrol_at_once_by_one_invitation_are_one(fleet: FleetService) -> None:
    token = fleet.devices.invite(ADMIN, InvitationOrder()).token

    def enrol(number: int) -> str:
        try:
            asked = Enrolment(token=token, name=f"pi-{number}", request=request(), facts=facts())
            return fleet.devices.enroll(asked).device
        except AuthenticationError:
            return ""

    with ThreadPoolExecutor(8) as pool:
        made = [one for one in pool.map(enrol, range(8)) if one]
    assert len(made) == 1
    assert fleet.devices.count()[0] == 1


def test_devices_that_enrol_at_once_under_one_name_are_one(fleet: FleetService) -> None:
    token = fleet.devices.invite(ADMIN, InvitationOrder(uses=8)).token

    def enrol(_: int) -> bool:
        try:
            fleet.devices.enroll(Enrolment(token=token, name="pi-1", request=request(), facts=facts()))
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enrol, range(8))) == 1
    assert fleet.devices.count()[0] == 1


def test_a_device_gets_a_new_key_by_an_invitation_of_its_own(fleet: FleetService) -> None:
    first = enroll(fleet, "pi-1", {"board": "rpi4"})
    with fleet.database.write() as session:
        row = session.get(Device, first.device)
        assert row is not None
        row.wanted = "ab" * 32
    token = fleet.devices.invite(ADMIN, InvitationOrder(device="pi-1")).token
    with pytest.raises(ConflictError, match="for the device pi-1, not pi-2"):
        fleet.devices.enroll(Enrolment(token=token, name="pi-2", request=request("pi-2"), facts=facts()))
    again = fleet.devices.enroll(Enrolment(token=token, name="pi-1", request=request(), facts=facts()))
    assert again.device == first.device
    assert fleet.devices.get("pi-1").labels == {"board": "rpi4"}
    assert fleet.devices.get("pi-1").wanted == "ab" * 32
    assert fleet.devices.identify(serial=serial_of(again)) == first.device
    for proof in ({"token": first.token}, {"serial": serial_of(first)}):
        with pytest.raises(AuthenticationError):
            fleet.devices.identify(**proof)


def test_an_invitation_for_a_device_wants_one_that_is_there(fleet: FleetService) -> None:
    with pytest.raises(AbsentError):
        fleet.devices.invite(ADMIN, InvitationOrder(device="pi-9"))
    enroll(fleet, "pi-1")
    with pytest.raises(UsageError, match="2 uses"):
        fleet.devices.invite(ADMIN, InvitationOrder(device="pi-1", uses=2))


def test_two_agents_with_one_identity_are_found_out(
    fleet: FleetService, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    device = enroll(fleet, "pi-1").device
    one, copy = Agent(fleet, device), Agent(fleet, device)
    one.start()
    one.sync()
    copy.start()
    copy.sync()
    with caplog.at_level(logging.WARNING, "edgekit"), pytest.raises(ConflictError, match="two use one identity"):
        one.sync()
    assert "two agents use the identity of the device pi-1" in caplog.text
    copy.sync()
    assert actions(fleet) == ["device.enroll", "device.start", "device.start", "device.twin"]
    for _ in range(5):  # the log is not filled with it
        with pytest.raises(ConflictError):
            one.sync()
    assert actions(fleet).count("device.twin") == 1
    clock.advance(NOTE_EVERY_S)
    with pytest.raises(ConflictError):
        one.sync()
    assert actions(fleet).count("device.twin") == 2
    one.start()
    with pytest.raises(ConflictError):
        copy.sync()


def test_an_agent_that_starts_anew_is_no_second_one(fleet: FleetService) -> None:
    device = enroll(fleet, "pi-1").device
    for _ in range(4):
        agent = Agent(fleet, device)
        agent.start()
        agent.sync()
    assert "device.twin" not in actions(fleet)


def test_an_agent_that_started_at_another_worker_is_no_second_one(fleet: FleetService, database_url: str) -> None:
    device = enroll(fleet, "pi-1").device
    other = FleetService(fleet.core.authority.key_path.parent.parent, database_url)
    try:
        first, second = Agent(fleet, device), Agent(other, device)
        first.start()
        second.start()  # the same device after a restart, heard by the other worker
        Agent.sync(second)
        second.fleet = fleet
        second.sync()
        with pytest.raises(ConflictError):
            first.sync()
    finally:
        other.close()


def test_the_invitation_carries_the_authority_where_the_service_stands_behind_it(fleet: FleetService) -> None:
    assert "." not in fleet.devices.invite(ADMIN, InvitationOrder()).token
    fleet.devices.tells_authority = True
    token = fleet.devices.invite(ADMIN, InvitationOrder()).token
    assert token.endswith(f".{fleet.core.authority.fingerprint}")
    fleet.devices.enroll(Enrolment(token=token, name="pi-1", request=request(), facts=facts()))


def test_a_token_of_a_person_ends(fleet: FleetService, clock: SettableClock) -> None:
    made = fleet.people.make(ADMIN, PersonOrder(name="bob", role="viewer", valid_s=10 * DAY_S))
    assert fleet.people.identify(made.token).name == "bob"
    assert [one.ends_at for one in fleet.people.all()] == [clock() + 10 * DAY_S]
    clock.advance(10 * DAY_S)
    with pytest.raises(AuthenticationError, match="has ended"):
        fleet.people.identify(made.token)


def test_who_holds_the_old_key_cannot_renew_it_where_another_worker_has_not_heard_yet(
    fleet: FleetService, database_url: str, tmp_path: Path
) -> None:
    first = enroll(fleet, "pi-1")
    other = FleetService(tmp_path / "data", database_url)
    try:
        assert other.devices.identify(serial=serial_of(first)) == first.device
        token = fleet.devices.invite(ADMIN, InvitationOrder(device="pi-1")).token
        second = fleet.devices.enroll(Enrolment(token=token, name="pi-1", request=request(), facts=facts()))
        assert other.devices.is_at_hand(serial=serial_of(first))  # from memory it counts still
        for proof in ({"serial": serial_of(first)}, {"token": first.token}, {}):
            with pytest.raises(AuthenticationError):
                other.devices.renew(first.device, Renewal(request=request()), **proof)
        third = other.devices.renew(first.device, Renewal(request=request()), serial=serial_of(second))
        assert fleet.devices.identify(serial=serial_of(third)) == first.device
    finally:
        other.close()


def test_a_revoked_device_is_given_no_certificate(fleet: FleetService) -> None:
    first = enroll(fleet, "pi-1")
    fleet.devices.change(ADMIN, "pi-1", DeviceChange(standing="revoked"))
    with pytest.raises(ForbiddenError, match="revoked"):
        fleet.devices.renew(first.device, Renewal(request=request()), serial=serial_of(first))


def test_an_invitation_from_before_it_was_revoked_lets_a_device_in_no_more(fleet: FleetService) -> None:
    enroll(fleet, "pi-1")
    before = fleet.devices.invite(ADMIN, InvitationOrder(device="pi-1")).token
    everyone = fleet.devices.invite(ADMIN, InvitationOrder()).token
    fleet.devices.change(ADMIN, "pi-1", DeviceChange(standing="revoked"))
    with pytest.raises(AuthenticationError):
        fleet.devices.enroll(Enrolment(token=before, name="pi-1", request=request(), facts=facts()))
    assert fleet.devices.get("pi-1").standing == "revoked"
    fleet.devices.enroll(Enrolment(token=everyone, name="pi-2", request=request(), facts=facts()))
    behind = fleet.devices.invite(ADMIN, InvitationOrder(device="pi-1")).token
    fleet.devices.enroll(Enrolment(token=behind, name="pi-1", request=request(), facts=facts()))
    assert fleet.devices.get("pi-1").standing == "active"


def test_a_new_key_makes_a_renewal_that_was_not_used_yet_worthless_too(fleet: FleetService) -> None:
    first = enroll(fleet, "pi-1")
    pending = fleet.devices.renew(first.device, Renewal(request=request()), first.token)
    token = fleet.devices.invite(ADMIN, InvitationOrder(device="pi-1")).token
    second = fleet.devices.enroll(Enrolment(token=token, name="pi-1", request=request(), facts=facts()))
    with pytest.raises(AuthenticationError):
        fleet.devices.identify(serial=serial_of(pending))
    assert fleet.devices.identify(serial=serial_of(second)) == first.device

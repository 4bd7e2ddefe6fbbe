"""How devices come in, and how each proves who it is.

An invitation's token lets a device in once; from then on its certificate says who it is, or on loopback its token. A
renewed certificate counts beside the one before until it is used for the first time: an answer that was lost locks
nobody out, and one that arrived makes the older one worthless.
"""

from __future__ import annotations

import logging
import threading

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgekit.errors import AbsentError, AuthenticationError, ConflictError, ForbiddenError, UsageError
from edgekit.fleet.protocol.agents import Enrolled, Enrolment, Renewal, Slot, Sync
from edgekit.fleet.protocol.people import InvitationMade, InvitationOrder
from edgekit.fleet.protocol.wire import new_identifier
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.directory import Directory
from edgekit.fleet.service.people import Actor
from edgekit.fleet.service.signed import newest_root
from edgekit.fleet.store.retrying import retried
from edgekit.fleet.store.tables import Device, Invitation
from edgekit.fleet.trust.authority import Issued
from edgekit.fleet.trust.tokens import hash_token, new_token, secret_of

logger = logging.getLogger("edgekit")

NOTE_EVERY_S = 3600.0  # that two agents use one identity


@retried
class Identities:
    """`tells_authority`: invitations carry the fingerprint of the authority, because the service's own certificate is
    from it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.directory = Directory(core.database)
        self.tells_authority = False
        self._noted: dict[str, float] = {}
        self._enrolling = threading.Lock()

    def invite(self, actor: Actor, order: InvitationOrder) -> InvitationMade:
        """Raises AbsentError for a device that is not there, UsageError for more than one use by one."""
        actor.need("operator")
        core, token, now = self._core, new_token("invitation"), self._core.now()
        with core.database.write() as session:
            device = None if order.device is None else _named(session, order.device)
            if device is not None and order.uses != 1:
                raise UsageError(f"{order.uses} uses for the device {device.name}, allowed 1", hint="one for each")
            row = Invitation(
                id=new_identifier(),
                token_hash=hash_token(token),
                labels=dict(order.labels),
                uses_left=order.uses,
                ends_at=now + order.valid_s,
                device=None if device is None else device.id,
            )
            session.add(row)
            core.note(
                session,
                actor.name,
                "invitation.add",
                row.id if device is None else device.name,
                uses=order.uses,
                labels=dict(order.labels),
            )
        if self.tells_authority:
            token = f"{token}.{core.authority.fingerprint}"
        return InvitationMade(
            id=row.id,
            labels=order.labels,
            uses_left=order.uses,
            ends_at=row.ends_at,
            device=order.device,
            token=token,
        )

    def enroll(self, enrolment: Enrolment) -> Enrolled:
        """Raises AuthenticationError for a token that does not count, ConflictError where the name is taken, UsageError
        for the certificate request."""
        core, token = self._core, new_token("device")
        # Hundreds that come at once wait here, where it costs least, and not each with a connection to the database.
        with self._enrolling, core.database.write() as session:
            invitation = self._spend(session, enrolment.token)
            fresh = new_identifier() if invitation.device is None else invitation.device
            issued = core.authority.issue_device(enrolment.request, fresh)
            if invitation.device is None:
                row = self._add(session, fresh, invitation, enrolment, token, issued)
                session.add(row)
            else:
                row = self._take_over(session, fresh, enrolment, token, issued)
            root = newest_root(session)
            core.note(session, f"invitation {invitation.id}", "device.enroll", row.name, device=fresh)
        if invitation.device is not None:
            core.tell((fresh,))  # its old key counts no more; one that is new is looked for at its first call
        return Enrolled(device=fresh, certificate=issued.pem, authority=core.authority.pem, token=token, root=root)

    def _spend(self, session: Session, token: str) -> Invitation:
        found = select(Invitation).where(Invitation.token_hash == hash_token(secret_of(token))).with_for_update()
        invitation = session.scalar(found)
        if invitation is None or invitation.uses_left < 1 or invitation.ends_at < self._core.now():
            raise AuthenticationError(
                "the enrolment token is not known, used up or too old", hint="edgekit fleet invite makes one"
            )
        invitation.uses_left -= 1
        return invitation

    def _add(
        self, session: Session, device: str, invitation: Invitation, enrolment: Enrolment, token: str, issued: Issued
    ) -> Device:
        if session.scalar(select(Device.id).where(Device.name == enrolment.name)):
            raise ConflictError(
                f"there is a device {enrolment.name}",
                hint="give another --name; for the same device again: edgekit fleet invite --device NAME",
            )
        return Device(
            id=device,
            name=enrolment.name,
            tier=enrolment.facts.tier,
            standing="active",
            labels=dict(invitation.labels),
            token_hash=hash_token(token),
            certificate_serial=issued.serial,
            certificate_ends_at=issued.ends_at,
            enrolled_at=self._core.now(),
            boot=enrolment.facts.boot,
            facts=enrolment.facts.model_dump(mode="json"),
            slot=Slot().model_dump(mode="json"),
            kept=[],
            taken=-1,
            generation=1,
            changed_tick=self._core.database.tick(session),
            version=1,
        )

    def _take_over(self, session: Session, device: str, enrolment: Enrolment, token: str, issued: Issued) -> Device:
        """The device stays what it is, and gets another key: whoever holds the old one is out."""
        row = session.get(Device, device)
        if row is None:
            raise AuthenticationError("the device of this invitation is gone", hint="edgekit fleet invite")
        if row.name != enrolment.name:
            raise ConflictError(
                f"the invitation is for the device {row.name}, not {enrolment.name}", hint=f"--name {row.name}"
            )
        row.token_hash, row.boot = hash_token(token), enrolment.facts.boot
        row.certificate_serial, row.certificate_ends_at = issued.serial, issued.ends_at
        row.next_serial = row.next_ends_at = None
        row.standing, row.version = "active", row.version + 1
        row.changed_tick = self._core.database.tick(session)
        return row

    def identify(self, token: str = "", serial: str = "") -> str:
        """The id of the device with this token or certificate. Raises AuthenticationError, ForbiddenError once it is
        revoked."""
        known = self.directory.identify(token, serial)
        if serial and serial == known.next_serial:
            self._promote(known.id, serial)
        return known.id

    def is_at_hand(self, token: str = "", serial: str = "") -> bool:
        """Whether `identify` does without the database."""
        return self.directory.is_at_hand(token, serial)

    def renew(self, device: str, renewal: Renewal, token: str = "", serial: str = "") -> Enrolled:
        """A certificate that counts from its first use on; the device's token stays, and is not told again. `token`,
        `serial`: what the device was identified by, asked for once more where the database holds still: another worker
        may have heard only now that it counts no more. Raises UsageError for the certificate request,
        AuthenticationError, ForbiddenError."""
        issued = self._core.authority.issue_device(renewal.request, device)
        with self._core.database.write() as session:
            row = _device(session, device)
            held = (row.certificate_serial, row.next_serial) if serial else (row.token_hash,)
            if (serial or hash_token(token)) not in held:
                raise AuthenticationError("this device has another key now", hint="edgekit agent enroll --again")
            if row.standing != "active":
                raise ForbiddenError(f"the device {row.name} is revoked", hint="ask the operators of the fleet")
            row.next_serial, row.next_ends_at = issued.serial, issued.ends_at
            row.changed_tick = self._core.database.tick(session)
            root = newest_root(session)
        self._core.tell((device,))
        return Enrolled(device=device, certificate=issued.pem, authority=self._core.authority.pem, token="", root=root)

    def _promote(self, device: str, serial: str) -> None:
        with self._core.database.write() as session:
            row = _device(session, device)
            if row.next_serial != serial:
                return
            row.certificate_serial, row.certificate_ends_at = serial, row.next_ends_at or row.certificate_ends_at
            row.next_serial = row.next_ends_at = None
            row.changed_tick = self._core.database.tick(session)
            self._core.note(session, row.name, "device.renew", row.name, ends_at=row.certificate_ends_at)
        self._core.tell((device,))

    def is_newest(self, device: str, sync: Sync) -> bool:
        """Whether it comes from the agent that was started last as this device, as far as is known here."""
        return sync.boot is None or sync.facts is not None or self.directory.get(device).boot == sync.boot

    def need_newest(self, device: str, sync: Sync) -> None:
        """Asks the database, which knows of starts that other workers heard of. Raises ConflictError where another
        agent was started with this identity since: a copy of its folder, or a second process."""
        if self.is_newest(device, sync):
            return
        assert sync.boot is not None
        with self._core.database.read() as session:
            row = _device(session, device)
            name, boot = row.name, row.boot
        if boot == sync.boot:
            self.directory.stored(device, -1, boot)
            return
        self._note_twin(device, name)
        raise ConflictError(
            f"another agent was started as {name} since: two use one identity",
            hint=f"find the other one, or give this one a new key: edgekit fleet invite --device {name}",
        )

    def _note_twin(self, device: str, name: str) -> None:
        now = self._core.now()
        if now - self._noted.get(device, -NOTE_EVERY_S) < NOTE_EVERY_S:
            return
        self._noted[device] = now
        logger.warning("two agents use the identity of the device %s", name)
        with self._core.database.write() as session:
            self._core.note(session, name, "device.twin", name, said="two agents use this identity")


def _named(session: Session, key: str) -> Device:
    row = session.scalar(select(Device).where((Device.id == key) | (Device.name == key)))
    if row is None:
        raise AbsentError(f"no device {key}", hint="edgekit fleet devices lists them")
    return row


def _device(session: Session, device: str) -> Device:
    row = session.get(Device, device)
    if row is None:
        raise AuthenticationError("this device is not known here", hint="edgekit agent enroll --again")
    return row

"""Devices: how they come in, what they say, what they are told."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from edgekit.errors import AbsentError, AuthenticationError, ConflictError, StoreError
from edgekit.fleet.protocol.agents import (
    Desired,
    Enrolled,
    Enrolment,
    Facts,
    PlanOrder,
    Renewal,
    Slot,
    Sync,
)
from edgekit.fleet.protocol.people import DeviceChange, DeviceView, InvitationMade, InvitationOrder
from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.protocol.wire import Page, new_identifier
from edgekit.fleet.rollouts.selector import Selector
from edgekit.fleet.service.core import Core, paged
from edgekit.fleet.service.directory import Directory
from edgekit.fleet.service.groups import DEFAULT_INTERVAL_S, INTERVALS_LOST, is_connected, labels_of, settings_of
from edgekit.fleet.service.ingest import Intake
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.tables import Device, Invitation
from edgekit.fleet.trust.tokens import hash_token, new_token

logger = logging.getLogger("edgekit")

AT_ONCE = 500  # devices in one statement


class Devices:
    def __init__(self, core: Core) -> None:
        self._core = core
        self.directory = Directory(core.database)
        self.intake = Intake(core.database, self.directory, core.now)
        core.changed.append(self._hear)

    def _hear(self, devices: tuple[str, ...]) -> None:
        """Before whoever waits is told: the first listener."""
        try:
            self.directory.refresh()
        except StoreError as error:  # what was changed is stored; the next look at the clock finds it
            logger.warning("new orders are not read yet: %s", error.message)

    def close(self) -> None:
        """Writes what waits to be stored."""
        self.intake.close()

    def invite(self, actor: Actor, order: InvitationOrder) -> InvitationMade:
        actor.need("operator")
        token, now = new_token("invitation"), self._core.now()
        row = Invitation(
            id=new_identifier(),
            token_hash=hash_token(token),
            labels=dict(order.labels),
            uses_left=order.uses,
            ends_at=now + order.valid_s,
        )
        with self._core.database.write() as session:
            session.add(row)
            self._core.note(session, actor.name, "invitation.add", row.id, uses=order.uses, labels=dict(order.labels))
        return InvitationMade(id=row.id, labels=order.labels, uses_left=order.uses, ends_at=row.ends_at, token=token)

    def enroll(self, enrolment: Enrolment) -> Enrolled:
        """Raises AuthenticationError for a token that does not count, ConflictError where the name is taken, UsageError
        for the certificate request."""
        core, now = self._core, self._core.now()
        device, token = new_identifier(), new_token("device")
        with core.database.write() as session:
            invitation = session.scalar(
                select(Invitation).where(Invitation.token_hash == hash_token(enrolment.token)).with_for_update()
            )
            if invitation is None or invitation.uses_left < 1 or invitation.ends_at < now:
                raise AuthenticationError(
                    "the enrolment token is not known, used up or too old", hint="edgekit fleet invite makes one"
                )
            if session.scalar(select(Device.id).where(Device.name == enrolment.name)):
                raise ConflictError(
                    f"there is a device {enrolment.name}",
                    hint="give another --name, or remove that one: edgekit fleet devices remove",
                )
            issued = core.authority.issue_device(enrolment.request, device)
            invitation.uses_left -= 1
            session.add(
                Device(
                    id=device,
                    name=enrolment.name,
                    tier=enrolment.facts.tier,
                    standing="active",
                    labels=dict(invitation.labels),
                    token_hash=hash_token(token),
                    certificate_serial=issued.serial,
                    certificate_ends_at=issued.ends_at,
                    enrolled_at=now,
                    boot=enrolment.facts.boot,
                    facts=enrolment.facts.model_dump(mode="json"),
                    slot=Slot().model_dump(mode="json"),
                    kept=[],
                    taken=-1,
                    generation=1,
                    changed_tick=core.database.tick(session),
                    version=1,
                )
            )
            core.note(session, f"invitation {invitation.id}", "device.enroll", enrolment.name, device=device)
        return Enrolled(
            device=device, certificate=issued.pem, authority=core.authority.pem, token=token, root=self._root()
        )

    def _root(self) -> str:
        return "{}"

    def identify(self, token: str = "", serial: str = "") -> str:
        """The id of the device with this token or certificate. Raises AuthenticationError, ForbiddenError once it is
        revoked."""
        return self.directory.identify(token, serial).id

    def is_at_hand(self, token: str = "", serial: str = "") -> bool:
        """Whether `identify` does without the database."""
        return self.directory.is_at_hand(token, serial)

    def renew(self, device: str, renewal: Renewal) -> Enrolled:
        issued = self._core.authority.issue_device(renewal.request, device)
        token = new_token("device")
        with self._core.database.write() as session:
            row = _device(session, device)
            row.certificate_serial, row.certificate_ends_at = issued.serial, issued.ends_at
            row.token_hash, row.changed_tick = hash_token(token), self._core.database.tick(session)
            self._core.note(session, row.name, "device.renew", row.name)
        self._core.tell((device,))
        return Enrolled(
            device=device, certificate=issued.pem, authority=self._core.authority.pem, token=token, root=self._root()
        )

    def sync(self, device: str, sync: Sync) -> Desired:
        """Stores what came, and says what is wanted. Raises like `Intake.put`."""
        self.intake.put(device, sync).result()
        return self.desired(device)

    def desired(self, device: str) -> Desired:
        """Raises AuthenticationError for a device that is not there."""
        return self.directory.desired(device)

    def get(self, key: str) -> DeviceView:
        """By id or by name. Raises AbsentError."""
        with self._core.database.read() as session:
            row = session.scalar(select(Device).where((Device.id == key) | (Device.name == key)))
            if row is None:
                raise AbsentError(f"no device {key}", hint="edgekit fleet devices lists them")
            return self._view(row, settings_of(session, row)[0])

    def list(self, selector: str = "", after: str | None = None, limit: int = 100) -> Page[DeviceView]:
        """By name."""
        parsed = Selector.parse(selector)
        query = select(Device).order_by(Device.name)
        if after is not None:
            query = query.where(Device.name > after)
        with self._core.database.read() as session:
            found = []
            for row in session.scalars(query.execution_options(yield_per=500)):
                if parsed.holds(labels_of(row)):
                    found.append(self._view(row, DEFAULT_INTERVAL_S))
                if len(found) > limit:
                    break
        shown, following = paged(found, limit, lambda view: str(view.name))
        return Page[DeviceView](items=tuple(shown), next=following)

    def count(self) -> tuple[int, int]:
        """(active devices, those of them that are connected)."""
        lost_at = self._core.now() - INTERVALS_LOST * DEFAULT_INTERVAL_S
        active = select(func.count()).select_from(Device).where(Device.standing == "active")
        with self._core.database.read() as session:
            return session.scalar(active) or 0, session.scalar(active.where(Device.seen_at >= lost_at)) or 0

    def change(self, actor: Actor, key: str, change: DeviceChange, version: int | None = None) -> DeviceView:
        """Raises AbsentError, ConflictError."""
        actor.need("operator")
        with self._core.database.write() as session:
            row = session.scalar(select(Device).where((Device.id == key) | (Device.name == key)))
            if row is None:
                raise AbsentError(f"no device {key}", hint="edgekit fleet devices lists them")
            if version is not None and row.version != version:
                raise ConflictError(f"the device {row.name} has changed since it was read", hint="read it again")
            if change.labels is not None:
                row.labels = dict(change.labels)
            if change.standing is not None:
                row.standing = change.standing
            row.version += 1
            row.generation, row.changed_tick = row.generation + 1, self._core.database.tick(session)
            said = change.model_dump(mode="json", exclude_none=True)
            self._core.note(session, actor.name, "device.change", row.name, **said)
        self._core.tell((row.id,))
        return self.get(row.id)

    def remove(self, actor: Actor, key: str) -> None:
        """Raises AbsentError."""
        actor.need("operator")
        with self._core.database.write() as session:
            row = session.scalar(select(Device).where((Device.id == key) | (Device.name == key)))
            if row is None:
                raise AbsentError(f"no device {key}", hint="edgekit fleet devices lists them")
            session.delete(row)
            self._core.database.tick(session)
            self._core.note(session, actor.name, "device.remove", row.name, device=row.id)
        self._core.tell((row.id,))

    def _view(self, row: Device, interval_s: float) -> DeviceView:
        facts = Facts.model_validate(row.facts)
        return DeviceView(
            id=row.id,
            name=row.name,
            labels=row.labels,
            tier=facts.tier,
            standing="active" if row.standing == "active" else "revoked",
            connected=is_connected(row, interval_s, self._core.now()),
            enrolled_at=row.enrolled_at,
            seen_at=row.seen_at,
            slot=Slot.model_validate(row.slot),
            wanted=row.wanted,
            agent=facts.agent,
            system=facts.system,
            profile=facts.profile,
            plan=None if row.plan is None else PlanOrder.model_validate(row.plan),
            certificate_ends_at=row.certificate_ends_at,
            latest=None if row.latest is None else Window.model_validate(row.latest),
            version=row.version,
        )


def give(session: Session, devices: Mapping[str, str | None], tick: int) -> None:
    """Device -> the digest that it is to run from now on."""
    by_digest: dict[str | None, list[str]] = {}
    for device, digest in devices.items():
        by_digest.setdefault(digest, []).append(device)
    for digest, held in by_digest.items():
        for start in range(0, len(held), AT_ONCE):
            session.execute(
                update(Device)
                .where(Device.id.in_(held[start : start + AT_ONCE]))
                .values(wanted=digest, generation=Device.generation + 1, changed_tick=tick)
                .execution_options(synchronize_session=False)
            )


def _device(session: Session, device: str) -> Device:
    row = session.get(Device, device)
    if row is None:
        raise AuthenticationError("this device is not known here", hint="edgekit agent enroll")
    return row

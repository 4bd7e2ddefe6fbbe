"""Devices: how they come in, what they say, what they are told."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from edgekit.errors import AbsentError, ConflictError, StoreError
from edgekit.fleet.protocol.agents import (
    Desired,
    Facts,
    PlanOrder,
    Slot,
    Sync,
)
from edgekit.fleet.protocol.people import DeviceChange, DeviceView
from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.protocol.wire import Page
from edgekit.fleet.rollouts.selector import Selector
from edgekit.fleet.service.core import Core, paged
from edgekit.fleet.service.groups import counted, intervals_of, is_connected, labels_of, settings_of
from edgekit.fleet.service.identities import Identities
from edgekit.fleet.service.ingest import Intake
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.retrying import retried
from edgekit.fleet.store.tables import Device, Invitation

logger = logging.getLogger("edgekit")

AT_ONCE = 500  # devices in one statement


@retried
class Devices(Identities):
    def __init__(self, core: Core) -> None:
        super().__init__(core)
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

    def sync(self, device: str, sync: Sync) -> Desired:
        """Stores what came, and says what is wanted. Raises like `Intake.put`, and ConflictError where another agent
        was started with this identity since."""
        self.need_newest(device, sync)
        self.intake.put(device, sync).result()
        return self.desired(device)

    def desired(self, device: str) -> Desired:
        """Raises AuthenticationError for a device that is not there."""
        return self.directory.desired(device, self._core.now())

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
            found, interval_s = [], intervals_of(session)
            for row in session.scalars(query.execution_options(yield_per=500)):
                labels = labels_of(row)
                if parsed.holds(labels):
                    found.append(self._view(row, interval_s(labels)))
                if len(found) > limit:
                    break
        shown, following = paged(found, limit, lambda view: str(view.name))
        return Page[DeviceView](items=tuple(shown), next=following)

    def count(self) -> tuple[int, int]:
        """(active devices, those of them that are connected, each by its own interval)."""
        now = self._core.now()
        with self._core.database.read() as session:
            interval_s, rows = intervals_of(session), counted(session)
        return len(rows), sum(is_connected(row, interval_s(labels_of(row)), now) for row in rows)

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
            if change.standing == "revoked":  # an invitation from before would let it in again
                open_ones = update(Invitation).where(Invitation.device == row.id)
                session.execute(open_ones.values(uses_left=0))
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

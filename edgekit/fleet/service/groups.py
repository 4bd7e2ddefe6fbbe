"""Groups: names for selectors, and how their devices report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from edgekit.errors import AbsentError, ConflictError
from edgekit.fleet.protocol.people import GroupOrder, GroupView
from edgekit.fleet.rollouts.selector import Selector
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.retrying import retried
from edgekit.fleet.store.tables import Device, Group, Rollout

DEFAULT_INTERVAL_S = 30.0
INTERVALS_LOST = 3  # a device not heard of for so many of its intervals is not connected


@retried
class Groups:
    def __init__(self, core: Core) -> None:
        self._core = core

    def put(self, actor: Actor, name: str, order: GroupOrder, version: int | None = None) -> GroupView:
        """Makes or changes a group; with `version` only where it is still that one. Raises UsageError for the selector,
        ConflictError where it has changed."""
        actor.need("operator")
        selector = str(Selector.parse(order.selector))
        with self._core.database.write() as session:
            row = session.get(Group, name)
            if version is not None and (row.version if row is not None else 0) != version:
                raise ConflictError(f"the group {name} has changed since it was read", hint="read it again")
            if row is None:
                row = Group(name=name, version=0)
                session.add(row)
            before = row.selector
            row.selector, row.interval_s, row.compare_share = selector, order.interval_s, order.compare_share
            row.version += 1
            changed = self._changed(session, *{before or selector, selector})  # those that leave it too
            self._core.note(session, actor.name, "group.put", name, **order.model_dump(mode="json"))
        self._core.tell(changed)
        return self.get(name)

    def _changed(self, session: Session, *selectors: str) -> tuple[str, ...]:
        """Its devices hear of new settings as of any other order."""
        rows = {row.id: row for selector in selectors for row in members(session, selector)}.values()
        if rows:
            tick = self._core.database.tick(session)
            for row in rows:
                row.generation, row.changed_tick = row.generation + 1, tick
        return tuple(row.id for row in rows)

    def remove(self, actor: Actor, name: str) -> None:
        """Raises AbsentError, ConflictError while a rollout goes on in it."""
        actor.need("operator")
        with self._core.database.write() as session:
            row = session.get(Group, name)
            if row is None:
                raise _absent(session, name)
            if session.scalar(select(Rollout.id).where(Rollout.active == name)):
                raise ConflictError(f"a rollout goes on in {name}", hint="let it end, or roll it back")
            changed = self._changed(session, row.selector)
            session.delete(row)
            self._core.note(session, actor.name, "group.remove", name)
        self._core.tell(changed)

    def get(self, name: str) -> GroupView:
        """Raises AbsentError."""
        with self._core.database.read() as session:
            row = session.get(Group, name)
            if row is None:
                raise _absent(session, name)
            return self._view(row, counted(session))

    def all(self) -> tuple[GroupView, ...]:
        with self._core.database.read() as session:
            devices = counted(session)
            return tuple(self._view(row, devices) for row in session.scalars(select(Group).order_by(Group.name)))

    def _view(self, row: Group, devices: Sequence[Row[Any]]) -> GroupView:
        selector, now = Selector.parse(row.selector), self._core.now()
        held = [device for device in devices if selector.holds(labels_of(device))]
        return GroupView(
            name=row.name,
            selector=row.selector,
            interval_s=row.interval_s,
            compare_share=row.compare_share,
            devices=len(held),
            connected=sum(is_connected(device, row.interval_s, now) for device in held),
            running=dict(Counter(device.running or "" for device in held)),
            version=row.version,
        )


def counted(session: Session) -> Sequence[Row[Any]]:
    """What of the active devices a group is counted by: whole rows of thousands of them take long to read."""
    columns = (Device.name, Device.tier, Device.labels, Device.running, Device.seen_at)
    return list(session.execute(select(*columns).where(Device.standing == "active")))


def labels_of(device: Device | Row[Any]) -> dict[str, str]:
    """Its own labels, and those that say what it is: `name` and `tier`."""
    return {**device.labels, "name": device.name, "tier": device.tier}


def members(session: Session, selector: str) -> list[Device]:
    """Active devices that it holds, by name."""
    parsed = Selector.parse(selector)
    rows = session.scalars(select(Device).where(Device.standing == "active").order_by(Device.name))
    return [row for row in rows if parsed.holds(labels_of(row))]


def settings_of(session: Session, device: Device) -> tuple[float, float]:
    """(interval_s, compare_share): of the groups that hold it the shortest and the largest."""
    labels = labels_of(device)
    held = [group for group in session.scalars(select(Group)) if Selector.parse(group.selector).holds(labels)]
    if not held:
        return DEFAULT_INTERVAL_S, 0.0
    return min(group.interval_s for group in held), max(group.compare_share for group in held)


def intervals_of(session: Session) -> Callable[[Mapping[str, str]], float]:
    """How often a device with such labels is to ask, in seconds: the groups are read once for many devices."""
    groups = [(Selector.parse(group.selector), group.interval_s) for group in session.scalars(select(Group))]

    def interval_s(labels: Mapping[str, str]) -> float:
        return min((seconds for selector, seconds in groups if selector.holds(labels)), default=DEFAULT_INTERVAL_S)

    return interval_s


def is_connected(device: Device | Row[Any], interval_s: float, now: float) -> bool:
    return device.seen_at is not None and now - device.seen_at <= INTERVALS_LOST * interval_s


def _absent(session: Session, name: str) -> AbsentError:
    known = ", ".join(session.scalars(select(Group.name).order_by(Group.name))) or "none yet"
    return AbsentError(f"no group {name}; there are: {known}", hint="edgekit fleet groups set NAME SELECTOR makes one")

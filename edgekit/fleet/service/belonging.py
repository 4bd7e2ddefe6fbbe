"""What a device should run because of where it belongs: the bundle with which the last rollout of a group of its was
completed. Who joins a group while a rollout goes on waits for its end.

Of several groups the one whose rollout was completed last counts. Servers that keep an old bundle for devices that
still run it let go of it here, once none does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from edgekit.fleet.rollouts.members import moving_on
from edgekit.fleet.rollouts.selector import Selector
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.devices import give
from edgekit.fleet.service.rollout_rows import members_of, running_heads
from edgekit.fleet.store.tables import Clock, Device, Group, Rollout, RolloutDevice

LOOK_EVERY_S = 10.0  # for servers and joiners whose reports change no clock
AT_ONCE = 200  # devices that join at the same time; the others follow with the next look
NEVER_LOST_S = float("inf")


@dataclass(frozen=True)
class _Holding:
    """A group that wants something."""

    name: str
    selector: Selector
    wanted: str
    wanted_at: float


class Belonging:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._tick = -1
        self._looked_at = float("-inf")

    def settle(self) -> None:
        """Cheap where nothing has changed. Raises StoreError."""
        core, now = self._core, self._core.now()
        with core.database.read() as session:
            tick = session.scalar(select(Clock.tick)) or 0
            due = now - self._looked_at >= LOOK_EVERY_S
            if tick == self._tick and not due:
                return
            joining = self._joining(session)
            follow_up = self._follow_up(session, now) if due else {}
            free = self._free(session) if due else ()
        self._tick = tick
        if due:
            self._looked_at = now
        if joining or follow_up or free:
            self._write(joining, follow_up, free, now)

    def _joining(self, session: Session) -> dict[str, _Holding]:
        """Device -> the group whose bundle it is to get."""
        groups = [
            _Holding(row.name, Selector.parse(row.selector), row.wanted, row.wanted_at or 0.0)
            for row in session.scalars(select(Group).where(Group.wanted.is_not(None)))
            if row.wanted is not None
        ]
        if not groups:
            return {}
        busy = set(session.scalars(select(Rollout.group).where(Rollout.active.is_not(None))))
        taken = set(
            session.scalars(
                select(RolloutDevice.device)
                .join(Rollout, Rollout.id == RolloutDevice.rollout)
                .where(Rollout.active.is_not(None), RolloutDevice.state != "left")
            )
        )
        rows = session.execute(
            select(Device.id, Device.name, Device.tier, Device.labels, Device.wanted).where(Device.standing == "active")
        )
        found: dict[str, _Holding] = {}
        for row in rows:
            if len(found) >= AT_ONCE:
                break
            holding = _newest({**row.labels, "name": row.name, "tier": row.tier}, groups)
            if holding and row.wanted != holding.wanted and row.id not in taken and holding.name not in busy:
                found[row.id] = holding
        return found

    def _follow_up(self, session: Session, now: float) -> dict[tuple[str, str], str]:
        """(rollout, device) -> its state: who joined behind the end, or was lost, and has answered by now."""
        rows = session.scalars(
            select(Rollout)
            .join(Group, (Group.name == Rollout.group) & (Group.wanted == Rollout.bundle))
            .where(Rollout.state == "complete", Rollout.ended_at == Group.wanted_at)
        )
        found: dict[tuple[str, str], str] = {}
        for row in rows:
            for member in members_of(session, row, ("asked", "lost")).values():
                state = moving_on(member, row.bundle, NEVER_LOST_S, now)
                if member.wanted == row.bundle and state != member.state:
                    found[row.id, member.device] = state
        return found

    def _free(self, session: Session) -> tuple[str, ...]:
        """Servers that keep what no device needs any more."""
        servers = [
            server
            for server in session.scalars(select(Device).where(Device.tier != "device", Device.standing == "active"))
            if server.kept
        ]
        found = []
        for server in servers:
            row = session.scalar(
                select(Rollout)
                .join(RolloutDevice, RolloutDevice.rollout == Rollout.id)
                .where(RolloutDevice.device == server.id)
                .order_by(Rollout.started_at.desc())
                .limit(1)
            )
            if row is not None and row.active is None:
                running = running_heads(session, members_of(session, row).values())
                if not any(running.get(digest) for digest in server.kept):
                    found.append(server.id)
        return tuple(found)

    def _write(
        self,
        joining: dict[str, _Holding],
        follow_up: dict[tuple[str, str], str],
        free: Sequence[str],
        now: float,
    ) -> None:
        core = self._core
        with core.database.write() as session:
            tick = core.database.tick(session)
            for device, holding in joining.items():
                _join(session, device, holding, now)
            give(session, {device: holding.wanted for device, holding in joining.items()}, tick)
            for name in {holding.name for holding in joining.values()}:
                devices = [device for device, holding in joining.items() if holding.name == name]
                core.note(session, "service", "group.join", name, devices=len(devices), first=devices[:20])
            for (rollout, device), state in follow_up.items():
                where = (RolloutDevice.rollout == rollout, RolloutDevice.device == device)
                session.execute(update(RolloutDevice).where(*where).values(state=state))
            if free:
                values = {"kept": [], "generation": Device.generation + 1, "changed_tick": tick}
                session.execute(update(Device).where(Device.id.in_(free)).values(values))
                core.note(session, "service", "server.release", "kept", devices=list(free)[:20])
        self._tick = tick
        core.tell((*joining, *free))


def _newest(labels: Mapping[str, str], groups: Sequence[_Holding]) -> _Holding | None:
    held = [group for group in groups if group.selector.holds(labels)]
    return max(held, key=lambda group: group.wanted_at, default=None)


def _join(session: Session, device: str, holding: _Holding, now: float) -> None:
    """It becomes a member of the rollout that brought the bundle, so that it goes back with the others."""
    rollout = session.scalar(
        select(Rollout.id)
        .where(Rollout.group == holding.name, Rollout.bundle == holding.wanted, Rollout.state == "complete")
        .order_by(Rollout.ended_at.desc())
        .limit(1)
    )
    known = None if rollout is None else session.get(RolloutDevice, (rollout, device))
    if rollout is None:
        return
    if known is not None:
        known.state, known.asked_at = "asked", now
        return
    previous = session.scalar(select(Device.wanted).where(Device.id == device))
    session.add(RolloutDevice(rollout=rollout, device=device, state="asked", previous=previous, asked_at=now))

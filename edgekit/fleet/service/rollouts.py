"""Rollouts: started, carried on by the policy, paused, turned back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from edgekit.bundle.manifest import TIERS, Tier
from edgekit.errors import AbsentError, ConflictError, UsageError
from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.protocol.rollouts import (
    ENDED,
    DeviceState,
    GuardView,
    RolloutOrder,
    RolloutState,
    RolloutView,
    Tally,
)
from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.protocol.wire import Page, new_identifier
from edgekit.fleet.rollouts.guards import Verdict, judge_all, parse_guards
from edgekit.fleet.rollouts.policy import Member, Move, Situation, Stage, decide, plan_stages
from edgekit.fleet.service.core import Core, paged
from edgekit.fleet.service.devices import give
from edgekit.fleet.service.groups import members
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.tables import BundleRow, Device, Group, Rollout, RolloutDevice, WindowRow
from edgekit.fleet.telemetry.seen import Seen


class Rollouts:
    """`need_signed`: raises ConflictError for a bundle that no device would take."""

    def __init__(self, core: Core, need_signed: Callable[[Session, str], None] = lambda session, digest: None) -> None:
        self._core, self._need_signed = core, need_signed

    def start(self, actor: Actor, order: RolloutOrder) -> RolloutView:
        """Raises AbsentError for a bundle or group, UsageError for guards or a group that holds nobody, ConflictError
        while another rollout goes on in the group, or in one that shares a device with it."""
        actor.need("operator")
        parse_guards(order.guards)
        core, now, identifier = self._core, self._core.now(), new_identifier()
        with core.database.write() as session:
            if session.get(BundleRow, order.bundle) is None:
                raise AbsentError(f"no bundle {order.bundle[:16]}", hint="edgekit fleet push FILE.edgekit")
            self._need_signed(session, order.bundle)
            group = session.get(Group, order.group)
            if group is None:
                raise AbsentError(f"no group {order.group}", hint="edgekit fleet groups set NAME SELECTOR makes one")
            devices = members(session, group.selector)
            self._refuse_overlap(session, order.group, devices)
            tiers = {device.id: _tier(device.tier) for device in devices}
            stages = plan_stages(identifier, order, tiers)
            if not stages:
                raise UsageError(f"the group {order.group} holds no device", hint="edgekit fleet devices --label")
            session.add(
                Rollout(
                    id=identifier,
                    bundle=order.bundle,
                    group=order.group,
                    active=order.group,
                    order=order.model_dump(mode="json"),
                    stages=[asdict(stage) for stage in stages],
                    state="running",
                    stage=0,
                    stage_at=now,
                    reason="",
                    waits="",
                    verdicts=[],
                    started_at=now,
                    started_by=actor.name,
                    version=1,
                )
            )
            session.flush()
            session.add_all(
                RolloutDevice(rollout=identifier, device=device.id, state="waiting", previous=device.wanted)
                for device in devices
            )
            core.note(session, actor.name, "rollout.start", identifier, **order.model_dump(mode="json"))
        return self.get(identifier)

    def _refuse_overlap(self, session: Session, group: str, devices: Sequence[Device]) -> None:
        wanted = {device.id for device in devices}
        busy = session.execute(
            select(RolloutDevice.device, Rollout.id, Rollout.group)
            .join(Rollout, Rollout.id == RolloutDevice.rollout)
            .where(Rollout.active.is_not(None))
        )
        for device, rollout, other in busy:
            if device in wanted or other == group:
                raise ConflictError(
                    f"the rollout {rollout[:8]} goes on in {other}"
                    + ("" if other == group else ", which shares devices"),
                    hint="let it end, or roll it back",
                )

    def pause(self, actor: Actor, key: str) -> RolloutView:
        return self._turn(actor, key, "paused", ("running",), "paused by " + actor.name)

    def resume(self, actor: Actor, key: str) -> RolloutView:
        return self._turn(actor, key, "running", ("paused",), "")

    def roll_back(self, actor: Actor, key: str) -> RolloutView:
        """Of one that goes on, or that is complete: the devices get back what they ran before."""
        return self._turn(actor, key, "rolling-back", ("running", "paused", "complete"), "rolled back by " + actor.name)

    def _turn(
        self, actor: Actor, key: str, state: RolloutState, allowed: tuple[RolloutState, ...], reason: str
    ) -> RolloutView:
        actor.need("operator")
        changed: tuple[str, ...] = ()
        with self._core.database.write() as session:
            row = self._find(session, key)
            if row.state not in allowed:
                raise ConflictError(
                    f"the rollout {row.id[:8]} is {row.state}, allowed {' or '.join(allowed)}",
                    hint="edgekit fleet status",
                )
            if state == "rolling-back":
                changed = self._revert(session, row, None)
            row.state, row.reason, row.ended_at, row.active = state, reason, None, row.group
            row.version += 1
            self._core.note(session, actor.name, f"rollout.{state}", row.id)
        self._core.tell(changed)
        return self.get(row.id)

    def advance(self) -> int:
        """One step of every rollout that goes on; how many there are. Call it again and again, in one worker."""
        with self._core.database.read() as session:
            going = list(session.scalars(select(Rollout.id).where(Rollout.active.is_not(None))))
        for identifier in going:
            self._step(identifier)
        return len(going)

    def _step(self, identifier: str) -> None:
        core, now = self._core, self._core.now()
        with core.database.write() as session:
            row = session.get(Rollout, identifier)
            if row is None or row.active is None:
                return
            order = RolloutOrder.model_validate(row.order)
            verdicts = self._judge(session, row, order)
            situation = self._situation(session, row, order, verdicts)
            move = decide(situation, now)
            changed = self._carry_out(session, row, move, verdicts, now)
        core.tell(changed)

    def _situation(self, session: Session, row: Rollout, order: RolloutOrder, verdicts: Sequence[Verdict]) -> Situation:
        held = session.execute(
            select(RolloutDevice.device, RolloutDevice.state, RolloutDevice.asked_at, Device.slot)
            .join(Device, Device.id == RolloutDevice.device)
            .where(RolloutDevice.rollout == row.id)
        )
        found = {
            device: Member(
                device, _device_state(state), Slot.model_validate(slot), math.nan if asked_at is None else asked_at
            )
            for device, state, asked_at, slot in held
        }
        stages = [
            Stage(one["text"], tuple(device for device in one["devices"] if device in found), one["ends"])
            for one in row.stages
        ]
        settled_at = math.nan if row.settled_at is None else row.settled_at
        state = _rollout_state(row.state)
        return Situation(row.bundle, order, state, stages, row.stage, row.stage_at, settled_at, found, verdicts)

    def _judge(self, session: Session, row: Rollout, order: RolloutOrder) -> tuple[Verdict, ...]:
        """By the windows of this stage: of devices that run the new bundle, and of the others for comparison."""
        guards = parse_guards(order.guards)
        if not guards or row.state != "running":
            return ()
        windows = session.execute(
            select(WindowRow.digest, WindowRow.content)
            .join(RolloutDevice, RolloutDevice.device == WindowRow.device)
            .where(RolloutDevice.rollout == row.id, WindowRow.started_at >= row.stage_at)
        )
        new: list[Window] = []
        old: list[Window] = []
        for digest, content in windows:
            (new if digest == row.bundle else old).append(Window.model_validate(content))
        return judge_all(guards, Seen.of(new), Seen.of(old))

    def _carry_out(
        self, session: Session, row: Rollout, move: Move, verdicts: Sequence[Verdict], now: float
    ) -> tuple[str, ...]:
        """The ids of devices with new orders."""
        settled = None if math.isnan(move.settled_at) else move.settled_at
        shown = [_plain(verdict) for verdict in verdicts] or row.verdicts
        before = (row.state, row.stage, row.settled_at, row.reason, row.waits, row.verdicts)
        reason = move.reason or row.reason
        if before == (move.state, move.stage, settled, reason, move.waits, shown) and not (move.states or move.ask):
            return ()
        for device, state in move.states.items():
            values = {"state": state, **({"asked_at": now} if state == "asked" else {})}
            session.execute(
                update(RolloutDevice)
                .where(RolloutDevice.rollout == row.id, RolloutDevice.device == device)
                .values(**values)
            )
        changed: tuple[str, ...] = ()
        if move.ask:
            changed = self._ask(session, row, move.ask)
        if move.revert:
            changed = self._revert(session, row, move.revert)
        if move.release:
            changed = self._release(session, move.release)
        if move.stage != row.stage:
            row.stage_at = now
        if move.state != row.state:
            self._core.note(session, "service", f"rollout.{move.state}", row.id, reason=move.reason)
        row.state, row.stage, row.settled_at, row.reason, row.waits = (
            move.state, move.stage, settled, reason, move.waits,
        )  # fmt: skip
        row.verdicts = shown
        if move.state in ENDED:
            row.active, row.ended_at = None, now
        row.version += 1
        return changed

    def _ask(self, session: Session, row: Rollout, devices: tuple[str, ...]) -> tuple[str, ...]:
        tick = self._core.database.tick(session)
        for device in session.scalars(select(Device).where(Device.id.in_(devices))):
            if device.tier != "device" and device.wanted is not None and device.wanted != row.bundle:
                device.kept = [device.wanted]
        session.flush()
        give(session, dict.fromkeys(devices, row.bundle), tick)
        return devices

    def _release(self, session: Session, devices: tuple[str, ...]) -> tuple[str, ...]:
        tick = self._core.database.tick(session)
        session.execute(
            update(Device)
            .where(Device.id.in_(devices))
            .values(kept=[], generation=Device.generation + 1, changed_tick=tick)
        )
        return devices

    def _revert(self, session: Session, row: Rollout, devices: tuple[str, ...] | None) -> tuple[str, ...]:
        """Back to what each ran; all that were asked, without `devices`."""
        query = select(RolloutDevice).where(RolloutDevice.rollout == row.id, RolloutDevice.state != "waiting")
        if devices is not None:
            query = query.where(RolloutDevice.device.in_(devices))
        back = {one.device: one.previous for one in session.scalars(query)}
        tick = self._core.database.tick(session)
        give(session, back, tick)
        session.execute(update(Device).where(Device.id.in_(list(back))).values(kept=[]))
        return tuple(back)

    def get(self, key: str) -> RolloutView:
        """By id, the front of one, or `latest`. Raises AbsentError."""
        with self._core.database.read() as session:
            return self._view(session, self._find(session, key))

    def list(self, after: str | None = None, limit: int = 50) -> Page[RolloutView]:
        """The newest first."""
        query = select(Rollout).order_by(Rollout.started_at.desc(), Rollout.id).limit(limit + 1)
        with self._core.database.read() as session:
            if after is not None:
                query = query.where(Rollout.started_at < self._find(session, after).started_at)
            found = [self._view(session, row) for row in session.scalars(query).all()]
        shown, following = paged(found, limit, lambda view: str(view.id))
        return Page[RolloutView](items=tuple(shown), next=following)

    def _find(self, session: Session, key: str) -> Rollout:
        query = select(Rollout).order_by(Rollout.started_at.desc()).limit(2)
        if key != "latest":
            query = query.where(Rollout.id.startswith(key, autoescape=True))
        found = session.scalars(query).all()
        if not found or (len(found) > 1 and key != "latest"):
            raise AbsentError(
                f"{'several rollouts begin with' if found else 'no rollout'} {key}", hint="edgekit fleet status"
            )
        return found[0]

    def _view(self, session: Session, row: Rollout) -> RolloutView:
        bundle = session.get(BundleRow, row.bundle)
        states = Counter(session.scalars(select(RolloutDevice.state).where(RolloutDevice.rollout == row.id)))
        return RolloutView(
            id=row.id,
            bundle=row.bundle,
            name=bundle.name if bundle is not None else "",
            group=row.group,
            state=_rollout_state(row.state),
            stage=row.stage,
            stages=tuple(one["text"] for one in row.stages),
            tally=Tally(**states),
            guards=tuple(GuardView.model_validate(one) for one in row.verdicts),
            reason=row.reason or row.waits,
            started_at=row.started_at,
            started_by=row.started_by,
            stage_at=row.stage_at,
            ended_at=row.ended_at,
            order=RolloutOrder.model_validate(row.order),
            version=row.version,
        )


def _plain(verdict: Verdict) -> dict[str, object]:
    value = None if math.isnan(verdict.value) else verdict.value
    return {"text": verdict.text, "value": value, "holds": verdict.holds, "samples": verdict.samples}


def _tier(text: str) -> Tier:
    return next(tier for tier in TIERS if tier == text)


def _device_state(text: str) -> DeviceState:
    return next(state for state in DEVICE_STATES if state == text)


def _rollout_state(text: str) -> RolloutState:
    return next(state for state in ROLLOUT_STATES if state == text)


DEVICE_STATES: tuple[DeviceState, ...] = ("waiting", "asked", "right", "wrong", "lost", "reverted")
ROLLOUT_STATES: tuple[RolloutState, ...] = ("running", "paused", "rolling-back", *ENDED)

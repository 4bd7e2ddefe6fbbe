"""A rollout between its rows and the policy's values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from edgekit.bundle.manifest import TIERS, Tier
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
from edgekit.fleet.rollouts.guards import Verdict, parse_guards
from edgekit.fleet.rollouts.policy import Member, Situation, Stage
from edgekit.fleet.rollouts.selector import Selector
from edgekit.fleet.store.tables import BundleRow, Device, Group, Rollout, RolloutDevice

DEVICE_STATES: tuple[DeviceState, ...] = (
    "waiting", "asked", "right", "wrong", "lost", "reverting", "reverted", "left",
)  # fmt: skip
ROLLOUT_STATES: tuple[RolloutState, ...] = ("running", "paused", "rolling-back", *ENDED)

_MEMBER = (
    RolloutDevice.device,
    RolloutDevice.state,
    RolloutDevice.previous,
    RolloutDevice.asked_at,
    Device.name,
    Device.tier,
    Device.labels,
    Device.standing,
    Device.slot,
    Device.wanted,
    Device.kept,
    Device.seen_at,
)


def situation_of(session: Session, row: Rollout) -> Situation:
    """Without verdicts."""
    order = RolloutOrder.model_validate(row.order)
    members = members_of(session, row)
    running = running_heads(session, members.values())
    stages = [stage_of(stage) for stage in row.stages]
    return Situation(
        row.bundle,
        order,
        rollout_state(row.state),
        stages,
        row.stage,
        row.stage_at,
        _number(row.settled_at),
        members,
        guards=parse_guards(order.guards),
        running=running,
    )


def members_of(session: Session, row: Rollout, states: Collection[DeviceState] = DEVICE_STATES) -> dict[str, Member]:
    """Those in one of the `states`."""
    group = session.get(Group, row.group)
    selector = None if group is None else Selector.parse(group.selector)
    query = select(*_MEMBER).join(Device, Device.id == RolloutDevice.device).where(RolloutDevice.rollout == row.id)
    if states != DEVICE_STATES:
        query = query.where(RolloutDevice.state.in_(states))
    rows = session.execute(query).all()
    taken = _elsewhere(session, row) if any(one.state == "left" for one in rows) else frozenset()
    return {one.device: _member(one, selector, taken) for one in rows}


def _elsewhere(session: Session, row: Rollout) -> frozenset[str]:
    """Devices of other rollouts that go on: who left for one of them does not come back before its end."""
    query = (
        select(RolloutDevice.device)
        .join(Rollout, Rollout.id == RolloutDevice.rollout)
        .where(Rollout.active.is_not(None), Rollout.id != row.id, RolloutDevice.state != "left")
    )
    return frozenset(session.scalars(query))


def _member(row: Row[Any], selector: Selector | None, taken: Collection[str]) -> Member:
    inside = row.asked_at is not None or selector is None
    if not inside and selector is not None:
        inside = selector.holds({**row.labels, "name": row.name, "tier": row.tier})
    return Member(
        row.device,
        tier_of(row.tier),
        device_state(row.state),
        slot_of(row.slot),
        row.previous,
        row.wanted,
        tuple(row.kept),
        _number(row.asked_at),
        _number(row.seen_at),
        here=row.standing == "active" and inside and not (row.state == "left" and row.device in taken),
    )


def running_heads(session: Session, members: Iterable[Member]) -> Counter[str]:
    """Digest -> how many devices run it, as far as they said: of the rollout, or where it is of servers alone, of the
    fleet, whose devices they may answer."""
    heads = [member for member in members if not member.is_server]
    if heads:
        return Counter(one.slot.running for one in heads if one.slot.running is not None and one.state != "left")
    counted = session.execute(
        select(Device.running, func.count())
        .where(Device.tier == "device", Device.standing == "active", Device.running.is_not(None))
        .group_by(Device.running)
    )
    return Counter({digest: count for digest, count in counted if digest is not None})


def slot_of(stored: Mapping[str, Any]) -> Slot:
    """What was validated when it came is not validated again: a step may look at 10,000 of them."""
    return Slot.model_construct(**stored)


def stage_of(stored: Mapping[str, Any]) -> Stage:
    return Stage(stored["text"], tuple(stored["devices"]), stored["ends"], stored.get("judged", True))


def plain(verdict: Verdict) -> dict[str, object]:
    value = None if math.isnan(verdict.value) else verdict.value
    return {
        "text": verdict.text, "value": value, "holds": verdict.holds, "samples": verdict.samples, "why": verdict.why,
    }  # fmt: skip


def verdict_of(stored: Mapping[str, Any]) -> Verdict:
    return Verdict(stored["text"], _number(stored["value"]), stored["holds"], stored["samples"], stored.get("why", ""))


def view_of(session: Session, row: Rollout) -> RolloutView:
    return views_of(session, [row])[0]


def views_of(session: Session, rows: Sequence[Rollout]) -> list[RolloutView]:
    """Two queries, however many there are."""
    states = session.execute(
        select(RolloutDevice.rollout, RolloutDevice.state, func.count())
        .where(RolloutDevice.rollout.in_([row.id for row in rows]))
        .group_by(RolloutDevice.rollout, RolloutDevice.state)
    )
    tallies: dict[str, dict[str, int]] = {row.id: {} for row in rows}
    for rollout, state, count in states.tuples():
        tallies[rollout][state] = count
    digests = {row.bundle for row in rows}
    named = select(BundleRow.digest, BundleRow.name).where(BundleRow.digest.in_(digests))
    names = dict(session.execute(named).tuples().all())
    return [_view(row, names.get(row.bundle, ""), Tally(**tallies[row.id])) for row in rows]


def _view(row: Rollout, name: str, tally: Tally) -> RolloutView:
    return RolloutView(
        id=row.id,
        bundle=row.bundle,
        name=name,
        group=row.group,
        state=rollout_state(row.state),
        stage=row.stage,
        stages=tuple(one["text"] for one in row.stages),
        tally=tally,
        guards=tuple(GuardView.model_validate(one) for one in row.verdicts),
        reason=(row.reason or row.waits)[:2000],
        started_at=row.started_at,
        started_by=row.started_by,
        stage_at=row.stage_at,
        ended_at=row.ended_at,
        order=RolloutOrder.model_validate(row.order),
        version=row.version,
    )


def tier_of(text: str) -> Tier:
    return next(tier for tier in TIERS if tier == text)


def device_state(text: str) -> DeviceState:
    return next(state for state in DEVICE_STATES if state == text)


def rollout_state(text: str) -> RolloutState:
    return next(state for state in ROLLOUT_STATES if state == text)


def _number(stored: float | None) -> float:
    return math.nan if stored is None else stored

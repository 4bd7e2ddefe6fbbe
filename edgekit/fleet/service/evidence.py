"""What guards are judged by: windows of the devices of a rollout, and the golden answers that they told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.rollouts.guards import LEAST_REQUESTS, Guard, Verdict, figure
from edgekit.fleet.rollouts.policy import Member
from edgekit.fleet.store.tables import Device, Rollout, RolloutDevice, WindowRow
from edgekit.fleet.telemetry.seen import Seen

MOST_WINDOWS = 5_000  # the newest, of a step; more say little more
LOOKS_BACK_S = 3600.0  # for devices to compare with, where none runs the old bundle any more


def judge(session: Session, row: Rollout, guards: Sequence[Guard], members: Sequence[Member]) -> tuple[Verdict, ...]:
    """By what devices saw since the step began with the new bundle, against the others at the same time. Where too many
    have moved on, against what they saw before. What servers saw counts only where there are no devices: it is another
    part of the work, and much more of it."""
    heads = [member for member in members if not member.is_server]
    mixed = 0 < len(heads) < len(members)
    told = [member.slot for member in heads or members if member.slot.running == row.bundle]
    checked, right = sum(slot.checked for slot in told), sum(slot.right for slot in told)
    new = replace(_seen(session, row, row.stage_at, new=True, mixed=mixed), checked=checked, right=right)
    relative = [guard for guard in guards if guard.relative]
    beside = _seen(session, row, row.stage_at, new=False, mixed=mixed) if relative else Seen()
    lacking = [guard for guard in relative if figure(guard.metric, beside, LEAST_REQUESTS).samples < LEAST_REQUESTS]
    before = _seen(session, row, row.started_at - LOOKS_BACK_S, new=False, mixed=mixed) if lacking else Seen()
    return tuple(guard.judge(new, before if guard in lacking else beside) for guard in guards)


def _seen(session: Session, row: Rollout, since: float, *, new: bool, mixed: bool) -> Seen:
    """`mixed`: servers are among the members, and are passed over."""
    is_new = WindowRow.digest == row.bundle
    of_rollout = select(RolloutDevice.device).where(RolloutDevice.rollout == row.id)
    if mixed:
        of_rollout = of_rollout.join(Device, Device.id == RolloutDevice.device).where(Device.tier == "device")
    query = (
        select(WindowRow.content)
        .where(WindowRow.started_at >= since, is_new if new else ~is_new, WindowRow.device.in_(of_rollout))
        .order_by(WindowRow.started_at.desc())
        .limit(MOST_WINDOWS)
    )
    return Seen.of(Window.model_validate(content) for content in session.scalars(query))

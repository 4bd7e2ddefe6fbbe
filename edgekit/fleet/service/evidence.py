"""What guards are judged by: windows of the devices of a rollout, and the golden answers that they told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.rollouts.guards import LEAST_REQUESTS, Guard, Verdict, judge_all
from edgekit.fleet.rollouts.policy import Member
from edgekit.fleet.store.tables import Rollout, RolloutDevice, WindowRow
from edgekit.fleet.telemetry.seen import Seen

MOST_WINDOWS = 5_000  # the newest, of a step; more say little more
LOOKS_BACK_S = 3600.0  # for devices to compare with, where none runs the old bundle any more


def judge(session: Session, row: Rollout, guards: Sequence[Guard], members: Sequence[Member]) -> tuple[Verdict, ...]:
    """By what devices saw since the step began with the new bundle, against the others at the same time. Where all have
    moved on, against what they saw before."""
    told = [member.slot for member in members if member.slot.running == row.bundle]
    checked, right = sum(slot.checked for slot in told), sum(slot.right for slot in told)
    new = replace(_seen(session, row, row.stage_at, new=True), checked=checked, right=right)
    old = Seen()
    if any(guard.relative for guard in guards):
        old = _seen(session, row, row.stage_at, new=False)
        if old.requests < LEAST_REQUESTS:
            old = _seen(session, row, row.started_at - LOOKS_BACK_S, new=False)
    return judge_all(guards, new, old)


def _seen(session: Session, row: Rollout, since: float, *, new: bool) -> Seen:
    is_new = WindowRow.digest == row.bundle
    of_rollout = select(RolloutDevice.device).where(RolloutDevice.rollout == row.id)
    query = (
        select(WindowRow.content)
        .where(WindowRow.started_at >= since, is_new if new else ~is_new, WindowRow.device.in_(of_rollout))
        .order_by(WindowRow.started_at.desc())
        .limit(MOST_WINDOWS)
    )
    return Seen.of(Window.model_validate(content) for content in session.scalars(query))

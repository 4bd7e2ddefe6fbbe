"""Carrying rollouts on: what is, what the policy says to it, and what is done then. In one worker at a time.

Looking and deciding only read; the database is written where something changes, and only if nobody has turned the
rollout in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from edgekit.fleet.protocol.rollouts import ENDED
from edgekit.fleet.rollouts.guards import Verdict
from edgekit.fleet.rollouts.policy import Move, Situation, decide
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.devices import give
from edgekit.fleet.service.evidence import judge
from edgekit.fleet.service.rollout_rows import plain, situation_of, verdict_of
from edgekit.fleet.store.tables import Device, Group, Rollout, RolloutDevice

JUDGE_EVERY_S = 5.0
JUDGED = ("running", "paused")  # who has the new bundle while it is paused is not left with it where a guard breaks
LONG_S, REST = 0.2, 10  # a step that computes longer is not taken again before so many times its length
AT_ONCE = 500  # devices in one statement


class Steps:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._judged_at: dict[tuple[str, int], float] = {}
        self._rests_until: dict[str, float] = {}

    def advance(self) -> int:
        """One step of every rollout that goes on; how many there are. Raises StoreError."""
        with self._core.database.read() as session:
            going = list(session.scalars(select(Rollout.id).where(Rollout.active.is_not(None))))
        for identifier in going:
            if self._core.now() < self._rests_until.get(identifier, 0.0):
                continue
            began = time.thread_time()
            if self._step(identifier):
                self._step(identifier)  # who is next is asked at once
            took_s = time.thread_time() - began
            if took_s > LONG_S:
                self._rests_until[identifier] = self._core.now() + REST * took_s
        self._forget(going)
        return len(going)

    def _forget(self, going: Sequence[str]) -> None:
        self._judged_at = {key: at for key, at in self._judged_at.items() if key[0] in going}
        self._rests_until = {key: at for key, at in self._rests_until.items() if key in going}

    def _step(self, identifier: str) -> bool:
        """Whether another stage begins."""
        now = self._core.now()
        with self._core.database.read() as session:
            row = session.get(Rollout, identifier)
            if row is None or row.active is None:
                return False
            situation = situation_of(session, row)
            situation = replace(situation, verdicts=self._verdicts(session, row, situation, now))
            version = row.version
        move = decide(situation, now)
        told = [plain(verdict) for verdict in situation.verdicts] or row.verdicts
        if not _changes(row, move, told):
            return False
        with self._core.database.write() as session:
            row = session.get(Rollout, identifier)
            if row is None or row.active is None or row.version != version:
                return False
            begins = move.stage != row.stage
            row.verdicts = [] if begins else told
            # Read here: what devices say before these orders are stored is about other ones.
            changed = carry_out(self._core, session, row, move, self._core.now())
        self._core.tell(changed)
        return begins

    def _verdicts(self, session: Session, row: Rollout, situation: Situation, now: float) -> tuple[Verdict, ...]:
        """Of this stage; judged anew every few seconds, and before a step is left."""
        if not situation.guards or situation.state not in JUDGED or not situation.stages[situation.stage].judged:
            return ()
        key = (row.id, row.stage)
        known = tuple(verdict_of(one) for one in row.verdicts)
        if known and now - self._judged_at.get(key, -math.inf) < JUDGE_EVERY_S:
            return known
        self._judged_at[key] = now
        return judge(session, row, situation.guards, list(situation.members.values()))


def _changes(row: Rollout, move: Move, told: object) -> bool:
    settled = None if math.isnan(move.settled_at) else move.settled_at
    before = (row.state, row.stage, row.settled_at, row.reason, row.waits, row.verdicts)
    after = (move.state, move.stage, settled, move.reason or row.reason, move.waits, told)
    return before != after or bool(move.states or move.ask or move.revert or move.keep or move.release)


def carry_out(core: Core, session: Session, row: Rollout, move: Move, now: float) -> tuple[str, ...]:
    """In a transaction that writes; the ids of devices with new orders."""
    told = {*move.ask, *move.revert, *move.keep}
    by_state: dict[tuple[str | None, bool], list[str]] = {}
    for device in {*move.states, *told}:
        by_state.setdefault((move.states.get(device), device in told), []).append(device)
    for (state, is_told), devices in by_state.items():
        values = {**({"state": state} if state is not None else {}), **({"asked_at": now} if is_told else {})}
        for start in range(0, len(devices), AT_ONCE):
            some = RolloutDevice.device.in_(devices[start : start + AT_ONCE])
            session.execute(update(RolloutDevice).where(RolloutDevice.rollout == row.id, some).values(**values))
    if move.failures:
        failed = [{"rollout": row.id, "device": device, "failure": why} for device, why in move.failures.items()]
        session.execute(update(RolloutDevice), failed)
    if told or move.release:
        tick = core.database.tick(session)
        _ask(session, row, move.ask, tick)
        _revert(session, row, (*move.revert, *move.keep), frozenset(move.keep), tick)
        _release(session, move.release, tick)
    if move.stage != row.stage:
        row.stage_at = now
    if move.state != row.state:
        core.note(session, "service", f"rollout.{move.state}", row.id, reason=move.reason or row.reason)
    row.state, row.stage, row.waits = move.state, move.stage, move.waits
    row.settled_at = None if math.isnan(move.settled_at) else move.settled_at
    row.reason = move.reason or row.reason
    if move.state in ENDED:
        row.active, row.ended_at = None, now
    if move.state == "complete":
        _take_over(session, row, now)
    row.version += 1
    return (*told, *move.release)


def _take_over(session: Session, row: Rollout, now: float) -> None:
    """From now on the group wants this bundle: who joins gets it."""
    group = session.get(Group, row.group)
    if group is not None:
        row.before = {"wanted": group.wanted, "wanted_at": group.wanted_at}
        group.wanted, group.wanted_at = row.bundle, now


def keeps_old(row: Rollout) -> bool:
    """Whether its servers go on answering for what they ran."""
    return any(stage["ends"] for stage in row.stages)


def _ask(session: Session, row: Rollout, devices: tuple[str, ...], tick: int) -> None:
    if keeps_old(row):
        for server in session.scalars(select(Device).where(Device.id.in_(devices), Device.tier != "device")):
            before = [digest for digest in (server.wanted, *server.kept) if digest not in (None, row.bundle)]
            server.kept = list(dict.fromkeys(before))
        session.flush()
    give(session, dict.fromkeys(devices, row.bundle), tick)


def _revert(session: Session, row: Rollout, devices: tuple[str, ...], keeping: frozenset[str], tick: int) -> None:
    """Back to what each ran; those of `keeping`, servers, go on answering for the new bundle."""
    for start in range(0, len(devices), AT_ONCE):
        some = devices[start : start + AT_ONCE]
        query = select(RolloutDevice.device, RolloutDevice.previous).where(
            RolloutDevice.rollout == row.id, RolloutDevice.device.in_(some)
        )
        back = dict(session.execute(query).tuples().all())
        give(session, back, tick)
        session.execute(update(Device).where(Device.id.in_([*back]), Device.tier != "device").values(kept=[]))
        kept = [device for device in back if device in keeping]
        if kept:
            session.execute(update(Device).where(Device.id.in_(kept)).values(kept=[row.bundle]))


def _release(session: Session, devices: tuple[str, ...], tick: int) -> None:
    if devices:
        values = {"kept": [], "generation": Device.generation + 1, "changed_tick": tick}
        session.execute(update(Device).where(Device.id.in_(devices)).values(values))

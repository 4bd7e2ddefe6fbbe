"""What a rollout does next, given what its devices say: pure, so that a simulation and the service decide alike.

**Order.** Servers (tiers cloud, then edge) take the new bundle first and keep answering for the old one; then the
devices move in the steps of the order, the canary first; at last the servers let go of the old one, unless a device
still runs it. So at no moment does a head meet a server that does not hold its tail. Back it goes the same way round:
devices first while the servers hold both, then the servers.

**Success** of a device: it runs the new digest, and has answered every golden input right with it.

**Failure.** A broken guard, or more devices that refused, fell back or fell silent on the way than the order allows,
turns the rollout back by itself: whoever was asked gets back what it ran before. A server that refuses always does. A
device that was silent already when it was asked says nothing about the bundle: it is lost and gets its orders when it
returns. Where nothing can be judged (no device of a step answers, a guard has no samples, a server is silent) the
rollout pauses, and a person decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgekit.fleet.protocol.rollouts import ENDED, DeviceState, RolloutOrder, RolloutState
from edgekit.fleet.rollouts.guards import Guard, Verdict, shown
from edgekit.fleet.rollouts.members import Member, going_back, has_left, moving_on
from edgekit.fleet.rollouts.stages import SERVERS, Stage, counted, plan_stages

__all__ = ["SERVERS", "Member", "Move", "Situation", "Stage", "decide", "observe", "plan_stages"]

# Devices that go back wait so long for a server that is to take the old bundle again and is not heard of.
SERVER_WAIT_S = 120.0
FAILED = {"wrong": "fell back", "lost": "not heard of in time"}


@dataclass(frozen=True)
class Situation:
    """`stage_at`: when the stage began; `settled_at`: since when all of it have been right, nan before. `running`:
    digest -> how many devices that these servers answer run it. `guards` in the order of `verdicts`."""

    digest: str
    order: RolloutOrder
    state: RolloutState
    stages: Sequence[Stage]
    stage: int
    stage_at: float
    settled_at: float
    members: Mapping[str, Member]
    verdicts: Sequence[Verdict] = ()
    guards: Sequence[Guard] = ()
    running: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Move:
    """What changes. `ask`: get the new bundle; `revert`: get back what they ran, and `keep` the new one beside it;
    `release`: servers that keep nothing any more. `states`: of devices whose state is another now. `waits`: why
    nothing goes on, in words. `failures`: devices that have just failed, and why."""

    state: RolloutState
    stage: int
    settled_at: float
    reason: str = ""
    waits: str = ""
    ask: tuple[str, ...] = ()
    revert: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    states: Mapping[str, DeviceState] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


def decide(situation: Situation, now: float) -> Move:
    """Call it again and again; where nothing is to be done the Move changes nothing."""
    if situation.state in ENDED:
        return Move(situation.state, situation.stage, situation.settled_at)
    seen = observe(situation, now)
    held = replace(situation, members=seen)
    if situation.state == "rolling-back":
        move = _go_back(held, now, "")
    else:
        trouble = _trouble(held)
        if trouble:
            move = _go_back(held, now, trouble)
        elif situation.state == "paused":
            move = Move("paused", situation.stage, situation.settled_at)
        else:
            move = _advance(held, now)
    changed: dict[str, DeviceState] = {}
    for device, member in seen.items():
        state = "left" if member.state == "left" else move.states.get(device, member.state)
        if state != situation.members[device].state:
            changed[device] = state
    failures = {device: _why(seen[device], state) for device, state in changed.items() if state in FAILED}
    failures |= {
        device: _why(member, member.state)  # though it is on its way back at once
        for device, member in seen.items()
        if member.state in FAILED and member.state != situation.members[device].state
    }
    return replace(move, states=changed, failures=failures)


def _why(member: Member, state: DeviceState) -> str:
    return (member.slot.reason if state == "wrong" else "") or FAILED[state]


def observe(situation: Situation, now: float) -> dict[str, Member]:
    """The members as what they say makes them."""
    found = {}
    for device, member in situation.members.items():
        if situation.state == "rolling-back":
            state = going_back(member, situation.digest)
        else:
            state = moving_on(member, situation.digest, situation.order.timeout_s, now)
        found[device] = member if state == member.state else replace(member, state=state)
    if situation.state == "running":
        found |= _fallen_silent(situation, found, now)
    return found


def _fallen_silent(situation: Situation, members: Mapping[str, Member], now: float) -> dict[str, Member]:
    """Of this step, those that were right and were not heard of since the middle of its soak, for as long as a device
    may take to answer: a bundle may break more than its answers. Behind the last step nobody is left to be spared."""
    if math.isnan(situation.settled_at) or _is_last(situation):
        return {}
    late = now - situation.settled_at > situation.order.soak_s / 2 + situation.order.timeout_s
    return {
        device: replace(member, state="lost")
        for device in situation.stages[situation.stage].devices
        if (member := members.get(device)) is not None and late and _is_silent(situation, member)
    }


def _is_silent(situation: Situation, member: Member) -> bool:
    return member.state == "right" and not member.heard_at > situation.settled_at + situation.order.soak_s / 2


def _is_last(situation: Situation) -> bool:
    return all(stage.ends for stage in situation.stages[situation.stage + 1 :])


def _has_failed(member: Member) -> bool:
    return member.state == "wrong" or (member.state == "lost" and member.has_answered)


def _trouble(situation: Situation) -> str:
    """Why the rollout has to turn back; "" where it has not."""
    allowed = situation.order.max_wrong
    failed = [member for member in situation.members.values() if _has_failed(member)]
    servers = [member for member in failed if member.is_server]
    if servers or len(failed) > allowed:
        first = next((member.slot.reason for member in (*servers, *failed) if member.slot.reason), "")
        wrong = sum(member.state == "wrong" for member in failed)
        told = [f"{counted(wrong, 'device')} refused it or fell back"] if wrong else []
        if len(failed) > wrong:
            told.append(f"{counted(len(failed) - wrong, 'device')} fell silent on the way")
        whom = f", {counted(len(servers), 'server')} among them" if servers and len(servers) < len(failed) else ""
        limit = "no server may" if servers else f"allowed {allowed}"
        return f"{' and '.join(told)}{whom}; {limit}" + (f": {first}" if first else "")
    broken = [_judged(situation, index) for index, one in enumerate(situation.verdicts) if one.holds is False]
    return f"guard broken: {', '.join(broken)}" if broken else ""


def _judged(situation: Situation, index: int) -> str:
    """`p95<=80ms: 95.1 ms of 1,200 samples`"""
    verdict = situation.verdicts[index]
    value = shown(situation.guards[index].metric, verdict.value) if situation.guards else f"{verdict.value:.4g}"
    return f"{verdict.text}: {value} of {counted(verdict.samples, 'sample')}"


def _go_back(situation: Situation, now: float, reason: str) -> Move:
    """Servers that let go of the old bundle take it again; then devices go back; then the other servers. The end is
    when each has gone back, or had its time to."""
    digest = situation.digest
    told = [member for member in situation.members.values() if member.was_told]
    absent = tuple(m.device for m in told if m.state == "left" and m.wanted == digest and m.previous != digest)
    here = [member for member in told if member.state != "left"]
    to_tell = [member for member in here if member.state not in ("reverting", "reverted")]
    again = tuple(m.device for m in to_tell if m.is_server and not m.holds(m.previous))
    heads = tuple(m.device for m in to_tell if not m.is_server)
    needed = situation.running.get(digest, 0) > 0
    base = Move("rolling-back", situation.stage, math.nan, reason)
    if heads and (again or any(m.is_server and _is_awaited(m, situation, now) for m in here)):
        waits = "devices go back once the servers hold the old bundle again"
        return _telling(replace(base, waits=waits), back=absent, keep=again)
    if heads:
        return _telling(base, back=(*absent, *heads))
    if not any(not m.is_server and _is_moving(m, situation, now) for m in here):
        rest = tuple(m.device for m in to_tell)
        if rest:
            return _telling(base, back=absent if needed else (*absent, *rest), keep=rest if needed else ())
    if absent:
        return _telling(base, back=absent)
    left = sum(_is_moving(member, situation, now) for member in here)
    if left:
        return replace(base, waits=f"{counted(left, 'device')} on the way back")
    ends = {m.device: _given_up(m) for m in here if m.state == "reverting"}
    free = () if needed else tuple(m.device for m in here if m.is_server and digest in m.kept)
    return replace(base, state="rolled-back", release=free, states=ends)


def _telling(move: Move, back: tuple[str, ...], keep: tuple[str, ...] = ()) -> Move:
    return replace(move, revert=back, keep=keep, states=dict.fromkeys((*back, *keep), "reverting"))


def _is_moving(member: Member, situation: Situation, now: float) -> bool:
    return member.state == "reverting" and now - member.told_at <= situation.order.timeout_s


def _is_awaited(member: Member, situation: Situation, now: float) -> bool:
    """A server that was told to take the old bundle again, and may yet do so."""
    if not _is_moving(member, situation, now) or has_left(member, situation.digest):
        return False
    return member.has_answered or now - member.told_at <= SERVER_WAIT_S


def _given_up(member: Member) -> DeviceState:
    """Its time to go back is over; its orders stay, for when it can."""
    return "wrong" if member.has_answered else "lost"


def _advance(situation: Situation, now: float) -> Move:
    stage, order = situation.stages[situation.stage], situation.order
    if stage.ends:
        return _end(situation, stage, now)
    # Those of the steps before, too: one that was revoked and is back has to be asked again.
    so_far = [_here(situation, each) for each in situation.stages[: situation.stage + 1]]
    servers = [m for each in so_far for m in each if m.is_server and m.state != "right"]
    open_ones = servers or [m for each in so_far for m in each]
    waiting = [member.device for member in open_ones if member.state == "waiting"]
    if waiting:
        under_way = sum(member.state == "asked" for member in situation.members.values())
        ask = tuple(waiting[: len(waiting) if order.window == 0 else max(0, order.window - under_way)])
        waits = "" if ask else f"{counted(under_way, 'device')} on the way, as many as may be at once"
        return Move("running", situation.stage, math.nan, waits=waits, ask=ask, states=dict.fromkeys(ask, "asked"))
    asked = sum(member.state == "asked" for member in open_ones)
    if asked:
        return Move("running", situation.stage, math.nan, waits=f"{counted(asked, 'device')} on the way")
    if servers:
        silent = counted(len(servers), "server")
        return _pause(situation, f"{silent} not heard of; devices wait until all hold the bundle")
    members = so_far[-1]
    if members and not any(member.state == "right" for member in members):
        lost = sum(member.state == "lost" for member in members)
        silent = f", {lost} of them not heard of" if lost else ""
        return _pause(situation, f"no device of this step answers right with it{silent}")
    settled_at = now if math.isnan(situation.settled_at) else situation.settled_at
    waits = _holds_out(replace(situation, settled_at=settled_at), members, now)
    if waits:
        late = now - settled_at > order.soak_s + order.timeout_s
        untold = any(verdict.holds is None for verdict in situation.verdicts) and stage.judged
        if late and untold:
            return _pause(situation, f"cannot be judged: {waits}")
        return Move("running", situation.stage, settled_at, waits=waits)
    if situation.stage + 1 < len(situation.stages):
        return Move("running", situation.stage + 1, math.nan)
    return Move("complete", situation.stage, settled_at)


def _here(situation: Situation, stage: Stage) -> list[Member]:
    return [m for device in stage.devices if (m := situation.members.get(device)) and m.state != "left"]


def _pause(situation: Situation, reason: str) -> Move:
    return Move("paused", situation.stage, math.nan, reason)


def _holds_out(situation: Situation, members: Sequence[Member], now: float) -> str:
    """What this step still waits for, all of it being right; "" where it is over."""
    left_s = situation.settled_at + situation.order.soak_s - now
    if left_s > 0:
        step_s = 5 if left_s < 60 else 30  # a text that changes each second would be written each second
        return f"soaks for {step_s * math.ceil(left_s / step_s)} s more"
    silent = sum(_is_silent(situation, member) for member in members)
    if silent and not _is_last(situation) and situation.order.soak_s > 0:
        return f"{counted(silent, 'device')} right, but not heard of since"
    if situation.stages[situation.stage].judged and any(member.state == "right" for member in members):
        untold = [verdict for verdict in situation.verdicts if verdict.holds is None]
        return ", ".join(f"{one.text} ({one.why or counted(one.samples, 'sample')})" for one in untold)
    return ""


def _end(situation: Situation, stage: Stage, now: float) -> Move:
    """The rollout is over; servers let go of bundles that no device runs any more."""
    servers = _here(situation, stage)
    still = {digest for member in servers for digest in member.kept if situation.running.get(digest)}
    free = tuple(member.device for member in servers if member.kept and not still.intersection(member.kept))
    count = sum(situation.running[digest] for digest in still)
    waits = f"the servers keep the old bundle: {counted(count, 'device')} still running it" if still else ""
    return Move("complete", situation.stage, now, waits=waits, release=free)

"""What a rollout does next, given what its devices say: pure, so that a simulation and the service decide alike.

**Order.** Servers (tiers cloud, then edge) take the new bundle first and keep answering for the old one; then the
devices move in the steps of the order, the canary first; at last the servers let go of the old one. So at no moment
does a head meet a server that does not hold its tail.

**Success** of a device: it runs the new digest, and has answered every golden input right with it.

**Failure.** A broken guard, or more devices that refused, fell back or were lost than the order allows, turns the
rollout back by itself: whoever was asked gets back what it ran before.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgekit.bundle.manifest import TIERS, Tier
from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.protocol.rollouts import DeviceState, RolloutOrder, RolloutState
from edgekit.fleet.rollouts.guards import Verdict

FAILED: tuple[DeviceState, ...] = ("wrong", "lost")
SERVERS: tuple[Tier, ...] = tuple(tier for tier in reversed(TIERS) if tier != "device")


@dataclass(frozen=True)
class Stage:
    """`devices` in the order in which they are asked. `ends` True: the servers of it let go of the old bundle."""

    text: str
    devices: tuple[str, ...]
    ends: bool = False


@dataclass(frozen=True)
class Member:
    """A device within a rollout. `slot`: as it last said. `asked_at`: when it was told, nan before."""

    device: str
    state: DeviceState = "waiting"
    slot: Slot = Slot()
    asked_at: float = math.nan


@dataclass(frozen=True)
class Situation:
    """`stage_at`: when the stage began; `settled_at`: since when all of it have been right, nan before."""

    digest: str
    order: RolloutOrder
    state: RolloutState
    stages: Sequence[Stage]
    stage: int
    stage_at: float
    settled_at: float
    members: Mapping[str, Member]
    verdicts: Sequence[Verdict] = ()


@dataclass(frozen=True)
class Move:
    """What changes. `ask`: get the new bundle; `revert`: get back what they ran; `release`: servers that let go of the
    old one. `states`: of devices whose state is another now. `waits`: why nothing goes on, in words."""

    state: RolloutState
    stage: int
    settled_at: float
    reason: str = ""
    waits: str = ""
    ask: tuple[str, ...] = ()
    revert: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    states: Mapping[str, DeviceState] = field(default_factory=dict)


def plan_stages(seed: str, order: RolloutOrder, tiers: Mapping[str, Tier]) -> tuple[Stage, ...]:
    """`tiers`: of every device of the group. Who is first is drawn by `seed`, so that it is not always the same."""
    stages = []
    servers: list[str] = []
    for tier in SERVERS:
        found = _shuffled(seed, (device for device, own in tiers.items() if own == tier))
        if found:
            stages.append(Stage(f"{len(found)} on the {tier} first, the old one kept", tuple(found)))
            servers += found
    heads = _shuffled(seed, (device for device, own in tiers.items() if own == "device"))
    done = 0
    for share in order.steps:
        upto = math.ceil(share * len(heads) - 1e-9)
        if upto > done:
            stages.append(Stage(f"{share:.3g} of {len(heads):,} devices", tuple(heads[done:upto])))
            done = upto
    if servers and heads:
        stages.append(Stage("servers let go of the old one", tuple(servers), ends=True))
    return tuple(stages)


def _shuffled(seed: str, devices: Iterable[str]) -> list[str]:
    return sorted(devices, key=lambda device: hashlib.sha256(f"{seed} {device}".encode()).digest())


def decide(situation: Situation, now: float) -> Move:
    """Call it again and again; where nothing is to be done the Move changes nothing."""
    if situation.state in ("complete", "rolled-back", "aborted"):
        return Move(situation.state, situation.stage, situation.settled_at)
    seen = observe(situation, now)
    states = {device: member.state for device, member in seen.items() if member != situation.members[device]}
    held = replace(situation, members=seen)
    if situation.state == "rolling-back":
        return _turn_back(held, states, "")
    trouble = _trouble(held)
    if trouble:
        return _turn_back(held, states, trouble)
    if situation.state == "paused":
        return Move("paused", situation.stage, situation.settled_at, states=states)
    return _advance(held, states, now)


def observe(situation: Situation, now: float) -> dict[str, Member]:
    """The members as what they say makes them."""
    return {
        device: replace(member, state=_state(situation, member, now)) for device, member in situation.members.items()
    }


def _state(situation: Situation, member: Member, now: float) -> DeviceState:
    slot, digest = member.slot, situation.digest
    if member.state in ("waiting", "reverted", "wrong"):
        return member.state
    if situation.state == "rolling-back":
        return member.state
    if slot.phase == "failed" and slot.candidate == digest:
        return "wrong"
    if slot.running == digest and slot.phase == "idle":
        if slot.checked and slot.right == slot.checked:
            return "right"
        return "wrong" if slot.checked else member.state
    if member.state == "right":
        return "wrong" if slot.running is not None and slot.phase == "idle" else "right"  # it fell back by itself
    return "lost" if now - member.asked_at > situation.order.timeout_s else member.state


def _trouble(situation: Situation) -> str:
    """Why the rollout has to turn back; "" where it has not."""
    failed = [member for member in situation.members.values() if member.state in FAILED]
    if len(failed) > situation.order.max_wrong:
        first = next((member.slot.reason for member in failed if member.slot.reason), "")
        wrong = sum(member.state == "wrong" for member in failed)
        told = f"{wrong} refused it or fell back, {len(failed) - wrong} were not heard of in time"
        return f"{told}; allowed {situation.order.max_wrong}" + (f": {first}" if first else "")
    broken = [verdict for verdict in situation.verdicts if verdict.holds is False]
    if broken:
        told = ", ".join(f"{verdict.text} is {verdict.value:.4g}" for verdict in broken)
        return f"guard broken: {told}"
    return ""


def _turn_back(situation: Situation, states: dict[str, DeviceState], reason: str) -> Move:
    """All that were asked get back what they had; the end is when none of them runs the new bundle."""
    members = situation.members
    if situation.state != "rolling-back":
        asked = tuple(device for device, member in members.items() if member.state != "waiting")
        return Move("rolling-back", situation.stage, math.nan, reason, revert=asked, states=states)
    left = []
    for device, member in members.items():
        if member.state in ("waiting", "reverted"):
            continue
        if member.slot.running != situation.digest and member.slot.phase in ("idle", "failed"):
            states[device] = "reverted"
        elif member.state != "lost":
            left.append(device)
    if left:
        return Move("rolling-back", situation.stage, math.nan, waits=f"{len(left)} still run it", states=states)
    return Move("rolled-back", situation.stage, math.nan, states=states)


def _advance(situation: Situation, states: dict[str, DeviceState], now: float) -> Move:
    stage = situation.stages[situation.stage]
    if stage.ends:
        return Move("complete", situation.stage, now, release=stage.devices, states=states)
    members = [situation.members[device] for device in stage.devices]
    waiting = [member.device for member in members if member.state == "waiting"]
    if waiting:
        under_way = sum(member.state == "asked" for member in situation.members.values())
        room = len(waiting) if situation.order.window == 0 else max(0, situation.order.window - under_way)
        ask = tuple(waiting[:room])
        states |= dict.fromkeys(ask, "asked")
        return Move("running", situation.stage, math.nan, ask=ask, states=states, waits="" if ask else "window full")
    asked = sum(member.state == "asked" for member in members)
    if asked:
        return Move("running", situation.stage, math.nan, states=states, waits=f"{asked} are on their way")
    settled_at = now if math.isnan(situation.settled_at) else situation.settled_at
    open_guards = [verdict for verdict in situation.verdicts if verdict.holds is None]
    left_s = settled_at + situation.order.soak_s - now
    if left_s > 0:
        return Move("running", situation.stage, settled_at, states=states, waits=f"soaks for {left_s:.0f} s more")
    if open_guards:
        told = ", ".join(f"{verdict.text} ({verdict.samples} samples)" for verdict in open_guards)
        return Move("running", situation.stage, settled_at, states=states, waits=f"not yet told: {told}")
    if situation.stage + 1 < len(situation.stages):
        return Move("running", situation.stage + 1, math.nan, states=states)
    return Move("complete", situation.stage, settled_at, states=states)

"""What a device within a rollout is, by what it says and for how long it says nothing.

A report counts from the moment on at which the device was told: what it said before is about other orders. Who refused
or fell back stays wrong, who was lost may come back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgekit.bundle.manifest import Tier
from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.protocol.rollouts import DeviceState

RESTING = ("idle", "failed")  # phases in which nothing is under way
ABSENT_S = 120.0  # who was away for long when it was asked is waited for so long; it is told when it returns


@dataclass(frozen=True)
class Member:
    """`slot`: as it last said, at `heard_at`. `previous`: what it should have run before; `kept`: what it, a server,
    was told to keep answering for. `told_at`: when the rollout last told it what to run. nan: never. `here` False: it
    was revoked, or has left the group before it was told anything."""

    device: str
    tier: Tier = "device"
    state: DeviceState = "waiting"
    slot: Slot = Slot()
    previous: str | None = None
    wanted: str | None = None
    kept: tuple[str, ...] = ()
    told_at: float = math.nan
    heard_at: float = math.nan
    here: bool = True

    @property
    def is_server(self) -> bool:
        return self.tier != "device"

    @property
    def was_told(self) -> bool:
        return not math.isnan(self.told_at)

    @property
    def has_answered(self) -> bool:
        """Since it was told."""
        return self.heard_at > self.told_at

    def was_absent(self, timeout_s: float) -> bool:
        """It had been silent for longer than that when it was told, and is still."""
        return not self.has_answered and not self.told_at - self.heard_at <= timeout_s

    def is_right_with(self, digest: str) -> bool:
        slot = self.slot
        return slot.running == digest and slot.phase == "idle" and 0 < slot.checked == slot.right

    def holds(self, digest: str | None) -> bool:
        """A server that answers for it now, or was told to go on doing so."""
        return digest is None or digest in self.kept or self.slot.running == digest


def moving_on(member: Member, digest: str, timeout_s: float, now: float) -> DeviceState:
    """The state of a member of a rollout that goes on."""
    if not member.here:
        return "left"
    state = member.state
    if state == "left":
        return "waiting"
    if state in ("waiting", "wrong", "reverting", "reverted"):
        return state
    if member.has_answered:
        if member.is_right_with(digest):
            return "right"
        if _is_wrong_with(member, digest):
            return "wrong"
    patience_s = min(timeout_s, ABSENT_S) if member.was_absent(timeout_s) else timeout_s
    return "lost" if state == "asked" and now - member.told_at > patience_s else state


def _is_wrong_with(member: Member, digest: str) -> bool:
    slot = member.slot
    if slot.phase == "failed" and slot.candidate == digest:
        return True
    if slot.running == digest:
        return slot.phase == "idle" and slot.checked != slot.right
    return member.state == "right" and slot.phase in RESTING  # it fell back by itself


def going_back(member: Member, digest: str) -> DeviceState:
    """The state of a member of a rollout that turns back."""
    if not member.here:
        return "left"
    if member.state == "left":
        if not member.was_told:
            return "waiting"
        return "asked" if member.wanted == digest else "reverting"
    if member.state == "reverting" and (member.previous == digest or has_left(member, digest)):
        return "reverted"
    return member.state


def has_left(member: Member, digest: str) -> bool:
    """It runs something else now, and nothing is under way."""
    return member.has_answered and member.slot.running != digest and member.slot.phase in RESTING

"""A world of devices in virtual time, which move, refuse, lie, crash and fall silent while a rollout goes on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from edgekit.bundle.manifest import Tier
from edgekit.fleet.protocol.agents import Slot
from edgekit.fleet.protocol.rollouts import ENDED, RolloutOrder, RolloutState
from edgekit.fleet.rollouts.guards import Verdict
from edgekit.fleet.rollouts.policy import Member, Move, Situation, decide, plan_stages

OLD, NEW = "0" * 64, "1" * 64

# What the new bundle does on a device: answers right; is refused; runs without golden answers; answers some of them
# wrong; is left again after a while; takes the device with it once it runs.
Nature = Literal["good", "refused", "unchecked", "wrong", "falls-back", "kills"]


def right(digest: str | None) -> Slot:
    return Slot(running=digest, checked=4, right=4) if digest else Slot()


@dataclass
class Thing:
    """A device as it is. `runs` is the truth, the member's slot what it last said."""

    tier: Tier
    runs: str | None
    nature: Nature = "good"
    online: bool = True
    active: bool = True
    inside: bool = True
    wanted: str | None = None
    kept: tuple[str, ...] = ()
    ever_ran: set[str] = field(default_factory=set)

    def follow(self, member: Member, now: float) -> Member:
        """Hears its orders, follows them and reports."""
        if not self.online or not self.active:
            return member
        slot = self._slot()
        return replace(member, slot=slot, heard_at=now)

    def _slot(self) -> Slot:
        if self.wanted == self.runs:
            if self.wanted == NEW and self.nature == "falls-back":
                self.runs = OLD
                return replace_slot(right(OLD), candidate=NEW, phase="failed", reason="it answers wrong by now")
            return self._running()
        if self.wanted == NEW and self.nature == "refused":
            return replace_slot(right(self.runs), candidate=NEW, phase="failed", reason="no kernel for this machine")
        self.runs = self.wanted
        if self.runs is not None:
            self.ever_ran.add(self.runs)
        if self.runs == NEW and self.nature == "kills":
            self.online = False
            return replace_slot(right(OLD), candidate=NEW, phase="switching")
        return self._running()

    def _running(self) -> Slot:
        if self.runs == NEW and self.nature == "unchecked":
            return Slot(running=NEW)
        if self.runs == NEW and self.nature == "wrong":
            return Slot(running=NEW, checked=4, right=3)
        return right(self.runs)


def replace_slot(slot: Slot, **changes: object) -> Slot:
    return slot.model_copy(update=changes)


class World:
    """`step` lets time pass: devices report, the policy decides, what it decided is done."""

    def __init__(self, order: RolloutOrder, things: dict[str, Thing], previous: str | None = OLD) -> None:
        self.order, self.things, self.now = order, things, 0.0
        self.state: RolloutState = "running"
        self.stages = plan_stages("seed", order, {name: thing.tier for name, thing in things.items()})
        self.stage, self.stage_at, self.settled_at = 0, 0.0, math.nan
        self.reason = ""
        self.verdicts: Sequence[Verdict] = ()
        for thing in things.values():
            thing.wanted = previous
        self.members = {
            name: Member(name, thing.tier, slot=right(thing.runs), previous=previous, wanted=previous, heard_at=0.0)
            for name, thing in things.items()
        }
        self.moves: list[Move] = []

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def situation(self) -> Situation:
        members = {
            name: replace(
                member,
                here=self.things[name].active and (self.things[name].inside or member.was_told),
                wanted=self.things[name].wanted,
                kept=self.things[name].kept,
            )
            for name, member in self.members.items()
        }
        return Situation(
            NEW, self.order, self.state, self.stages, self.stage, self.stage_at, self.settled_at, members,
            self.verdicts, running=self.running(),
        )  # fmt: skip

    def running(self) -> Counter[str]:
        """As far as the service was told."""
        return Counter(
            member.slot.running
            for name, member in self.members.items()
            if not member.is_server and self.things[name].active and member.slot.running
        )

    def step(self, seconds: float = 10.0, before: Callable[[Move], None] = lambda move: None) -> Move:
        self.now += seconds
        for name in list(self.members):
            self.members[name] = self.things[name].follow(self.members[name], self.now)
        move = decide(self.situation(), self.now)
        before(move)
        self._do(move)
        return move

    def _do(self, move: Move) -> None:
        for name, state in move.states.items():
            self.members[name] = replace(self.members[name], state=state)
        for name in move.ask:
            thing = self.things[name]
            if thing.tier != "device" and thing.wanted not in (None, NEW):
                thing.kept = (thing.wanted,)
            thing.wanted = NEW
        for name in (*move.revert, *move.keep):
            self.things[name].wanted = self.members[name].previous
            self.things[name].kept = (NEW,) if name in move.keep else ()
        for name in move.release:
            self.things[name].kept = ()
        for name in (*move.ask, *move.revert, *move.keep):
            self.members[name] = replace(self.members[name], told_at=self.now)
        if move.stage != self.stage:
            self.stage_at = self.now
        self.state, self.stage, self.settled_at = move.state, move.stage, move.settled_at
        self.reason = move.reason or self.reason
        self.moves.append(move)

    def run(self, most: int = 500) -> RolloutState:
        for _ in range(most):
            if self.ended or self.state == "paused":
                break
            self.step()
        return self.state

    def told(self) -> set[str]:
        return {name for name, member in self.members.items() if member.was_told}

    def remove(self, name: str) -> None:
        del self.things[name], self.members[name]


def things(count: int, *, cloud: int = 0, edge: int = 0, nature: Nature = "good") -> dict[str, Thing]:
    made = {f"pi-{index}": Thing("device", OLD, nature) for index in range(count)}
    made |= {f"edge-{index}": Thing("edge", OLD) for index in range(edge)}
    return made | {f"cloud-{index}": Thing("cloud", OLD) for index in range(cloud)}


def order(steps: Iterable[float] = (1.0,), **changes: object) -> RolloutOrder:
    fields: dict[str, object] = {"bundle": NEW, "group": "pi", "steps": tuple(steps), "soak_s": 0, "timeout_s": 100}
    return RolloutOrder.model_validate({**fields, **changes})


@dataclass(frozen=True)
class Kit:
    """What the tests build worlds with."""

    things = staticmethod(things)
    order = staticmethod(order)
    World = World
    Thing = Thing
    old, new = OLD, NEW


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()

"""One simulated device: asks, follows, measures, as `edgekit agent run` would, without a model."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

from edgekit.errors import EdgekitError, RemoteError, UnreachableError
from edgekit.fleet.client import problem_of
from edgekit.fleet.protocol.agents import Desired, Facts, Phase, Slot, Sync
from edgekit.fleet.protocol.windows import MAX_WINDOWS, Window
from edgekit.fleet.simulation.behaviour import Fault, Senses
from edgekit.fleet.simulation.line import Line
from edgekit.fleet.simulation.outcome import Outcome

JITTER = 0.2
GOLDEN = 8  # inputs that a simulated bundle answers right
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
# Of an update, and the share of its time that each takes.
STEPS: tuple[tuple[Phase, float], ...] = (("downloading", 0.5), ("checking", 0.4), ("switching", 0.1))
RING = 2880  # windows that a device keeps while it is not heard: a day of them


@dataclass(frozen=True)
class Part:
    """How devices behave towards the fleet. `interval_s` None: as the fleet says; `wait_s`: how long a call may be
    held; `update_s`: how long an update takes; `offline`: share of the time without a network; `crash_s`: how long a
    bundle that crashes holds out."""

    interval_s: float | None = None
    wait_s: float = 0.0
    update_s: float = 5.0
    offline: float = 0.0
    offline_s: float = 60.0
    crash_s: float = 3.0


@dataclass
class Actor:
    """`fetch`: downloads a bundle, once for all devices of this process. `fault_of`: what a bundle does here."""

    name: str
    device: str
    line: Line
    senses: Senses
    part: Part
    outcome: Outcome
    facts: Facts
    random: Random
    fetch: Callable[[Line, str], Awaitable[None]]
    fault_of: Callable[[str], Fault | None]
    slot: Slot = field(default_factory=Slot)
    ring: deque[Window] = field(default_factory=lambda: deque(maxlen=RING))
    _known: int = 0
    _sequence: int = 0
    _previous: str | None = None
    _refused: set[str] = field(default_factory=set)
    _interval_s: float = 30.0
    _seen_at: float = 0.0
    _started_at: float = 0.0
    _told_facts: bool = False
    _ordered: bool = False

    async def run(self, until: float) -> None:
        """Until the loop's clock says `until`."""
        clock = asyncio.get_running_loop().time
        self._seen_at = self._started_at = time.time()
        await asyncio.sleep(self.random.uniform(0, self.part.interval_s or self._interval_s))
        retry_s = FIRST_RETRY_S
        while clock() < until:
            started = clock()
            try:
                desired = await self._sync(self.part.wait_s)
                is_moved = await self._follow(desired)
            except EdgekitError as error:
                self.outcome.errors[_kind(error)] += 1
                await asyncio.sleep(self.random.uniform(0.5, 1) * retry_s)
                retry_s = min(LONGEST_RETRY_S, 2 * retry_s)
                continue
            retry_s = FIRST_RETRY_S
            if is_moved or len(self.ring) >= MAX_WINDOWS:
                continue
            if not self.part.wait_s or clock() - started < 0.5 * self.part.wait_s:
                await self._rest(started, until)  # a call that was held took its time already

    async def _rest(self, started: float, until: float) -> None:
        """Until the next call, and longer where the network is away."""
        clock = asyncio.get_running_loop().time
        interval_s = (self.part.interval_s or self._interval_s) * self.random.uniform(1 - JITTER, 1 + JITTER)
        # With `offline` of the time away, in stretches of `offline_s`, so many of the rests end in one.
        away = self.part.offline * interval_s / (max(1e-9, 1 - self.part.offline) * self.part.offline_s)
        if self.part.offline and self.random.random() < away:
            self.line.close()
            interval_s += self.part.offline_s
        await asyncio.sleep(max(0.0, min(started + interval_s, until) - clock()))

    async def _sync(self, wait_s: float = 0.0) -> Desired:
        self._measure()
        windows = tuple(list(self.ring)[:MAX_WINDOWS]) if self.ring else ()
        message = Sync(
            known=self._known,
            slot=self.slot,
            windows=windows,
            facts=None if self._told_facts else self.facts,
            boot=self.facts.boot,
            wait_s=wait_s,
        ).model_dump_json(exclude_defaults=True)
        data, clock = message.encode(), time.perf_counter
        started = clock()
        status, body = await self.line.call("POST", "/v1/agent/sync", data, 30.0 + wait_s)
        taken_s = clock() - started
        self.outcome.bytes_sent += len(data)
        self.outcome.bytes_received += len(body)
        if status != 200:
            raise problem_of(status, body)
        desired = Desired.model_validate_json(body)
        self.outcome.syncs += 1
        self.outcome.latencies_s.append(max(0.0, taken_s - wait_s) if taken_s > wait_s else taken_s)
        self._told_facts = True
        while self.ring and self.ring[0].sequence <= desired.taken:
            self.outcome.windows += 1
            self.ring.popleft()
        self._interval_s = desired.interval_s
        return desired

    def _measure(self) -> None:
        """A window for the time since the last one, where something answered."""
        now = time.time()
        seconds = now - self._seen_at
        if self.slot.running is None or seconds < 1.0:
            return
        fault = self.fault_of(self.slot.running)
        self._keep(self.senses.window(self._sequence, self._seen_at, seconds, self.slot.running, fault, self._age(now)))
        self._seen_at = now

    def _keep(self, window: Window) -> None:
        if len(self.ring) == RING:
            self.outcome.lost_windows += 1
        self.ring.append(window)
        self._sequence += 1

    def collect(self, windows: int, seconds: float, digest: str) -> None:
        """What it saw while it was away, before the simulation began."""
        now = time.time()
        for back in range(windows, 0, -1):
            self._keep(self.senses.window(self._sequence, now - back * seconds, seconds, digest, None))

    def _age(self, now: float) -> float:
        return now - self._started_at

    async def _follow(self, desired: Desired) -> bool:
        """Whether something changed here that the fleet should hear of at once."""
        self._known = desired.generation
        wanted = None if desired.bundle is None else desired.bundle.digest
        if wanted == self.slot.running:
            if self.slot.phase == "failed":
                self._refused.clear()
                self._say("idle")
                return True
            return False
        if wanted is None:
            if self._ordered or self.slot.running is None:
                return self._stop()
            return False  # what it brought along runs until the fleet orders something
        self._ordered = True
        if wanted in self._refused:
            return False
        await self._take(wanted)
        return True

    def _stop(self) -> bool:
        before, self.slot = self.slot, Slot()
        return before != self.slot

    async def _take(self, digest: str) -> None:
        """The steps of an update, of which the fleet hears."""
        for phase, share in STEPS:
            self._say(phase, digest)
            if phase != "switching":
                await self._sync()
            if phase == "downloading":
                await self.fetch(self.line, digest)
            await asyncio.sleep(share * self.part.update_s * self.random.uniform(0.5, 1.5))
        self._measure()
        self._previous = self.slot.running
        self.slot = Slot(running=digest, phase="idle", checked=GOLDEN, right=GOLDEN)
        self.outcome.ran.setdefault(digest, set()).add(self.name)
        self._seen_at = time.time()
        if self.fault_of(digest) == "crash":
            await self._crash(digest)

    async def _crash(self, digest: str) -> None:
        """It answers for a moment, its process ends, and what ran before answers again."""
        await self._sync()
        await asyncio.sleep(self.part.crash_s * self.random.uniform(0.5, 1.5))
        reason = "its process ended with signal 11"
        self._refused.add(digest)
        self.outcome.failures[reason] += 1
        back, self._previous = self._previous, None
        right = GOLDEN if back else 0
        self.slot = Slot(running=back, candidate=digest, phase="failed", reason=reason, checked=right, right=right)

    def _say(self, phase: Phase, candidate: str | None = None) -> None:
        self.slot = self.slot.model_copy(update={"phase": phase, "candidate": candidate, "reason": ""})


def _kind(error: EdgekitError) -> str:
    if isinstance(error, UnreachableError):
        return error.message.split(":")[0]
    return type(error).__name__ if not isinstance(error, RemoteError) else error.message[:60]

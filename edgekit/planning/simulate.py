"""Policies replayed on a trace, in virtual time, by the coordinator's rules: pure and deterministic.

A request has a deadline. Where the remote answer is not there at the last moment at which a local one can be started,
the device starts it (the hedge), and what comes first is given: the local answer marked degraded. Three such failures
in a row open the circuit breaker, and while it is open nothing is sent; each trial that fails doubles the pause.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from edgekit.errors import UsageError
from edgekit.planning.plan import Links, Power, Way
from edgekit.planning.traces import Trace
from edgekit.planning.world import Attempt, Choice, Dice, World

PING_ANSWER_BYTES, PING_TIMEOUT_S = 64, 1.0


@dataclass(frozen=True)
class Workload:
    """`requests` at `rate_hz`, one at a time: a request that comes while another runs waits for it, and its waiting
    counts. Without a rate the next request follows `think_ms` after an answer. `margin_ms` is the coordinator's."""

    requests: int = 360
    rate_hz: float | None = 3.0
    think_ms: float = 0.0
    deadline_ms: float = 300.0
    margin_ms: float = 8.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 1 or not self.deadline_ms > 0 or self.think_ms < 0 or self.margin_ms < 0:
            raise UsageError(f"{self}: allowed requests from 1, a deadline above 0, other times from 0")
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise UsageError(f"{self.rate_hz} requests a second, allowed above 0")


@dataclass(frozen=True)
class Seen:
    """What a coordinator learns from one exchange, at `at_s`: how long it was under way but for the server's own
    computing. `replied` False: nothing came within `network_ms`. Probes are told as exchanges too."""

    at_s: float
    up_bytes: float
    down_bytes: float
    network_ms: float
    replied: bool
    probe: bool = False


class Policy(Protocol):
    """Made anew for each run. `probe_bytes`: asked with each request, after `choose`; how much it wants to send beside
    it to know the link, 0 for nothing."""

    name: str

    def choose(self, now_s: float, world: World) -> Choice: ...

    def observe(self, seen: Seen) -> None: ...

    def probe_bytes(self, now_s: float, choice: Choice) -> int: ...


@dataclass(frozen=True)
class Outcome:
    """One request. `degraded`: a local answer in the place of the planned one. `lost`: none by the deadline."""

    came_s: float
    latency_ms: float
    choice: Choice
    degraded: bool
    lost: bool
    exited: bool
    bytes_sent: float
    energy_mj: float
    drop: float
    agreement: float | None


@dataclass(frozen=True)
class Run:
    """A policy on a trace."""

    policy: str
    trace: str
    outcomes: tuple[Outcome, ...]
    probe_bytes: float = 0.0
    probe_mj: float = 0.0

    @property
    def latencies_ms(self) -> list[float]:
        return [outcome.latency_ms for outcome in self.outcomes]

    @property
    def mean_ms(self) -> float:
        return statistics.fmean(self.latencies_ms)

    def percentile_ms(self, share: float) -> float:
        """The least latency that `share` of the requests do not pass."""
        ordered = sorted(self.latencies_ms)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    @property
    def bytes_mean(self) -> float:
        """A request, probes included."""
        return (sum(outcome.bytes_sent for outcome in self.outcomes) + self.probe_bytes) / len(self.outcomes)

    @property
    def energy_mj_mean(self) -> float:
        """A request, probes included."""
        return (sum(outcome.energy_mj for outcome in self.outcomes) + self.probe_mj) / len(self.outcomes)

    @property
    def drop_mean(self) -> float:
        return statistics.fmean(outcome.drop for outcome in self.outcomes)

    @property
    def agreement_mean(self) -> float | None:
        """None where one of the ways taken does not know its own."""
        known = [outcome.agreement for outcome in self.outcomes if outcome.agreement is not None]
        return statistics.fmean(known) if len(known) == len(self.outcomes) else None

    @property
    def degraded(self) -> int:
        return sum(outcome.degraded for outcome in self.outcomes)

    @property
    def lost(self) -> int:
        return sum(outcome.lost for outcome in self.outcomes)

    @property
    def used(self) -> dict[str, int]:
        """How many requests each choice was made for, the most frequent first."""
        return dict(Counter(str(outcome.choice) for outcome in self.outcomes).most_common())


class Breaker:
    """The coordinator's, without its random part: `failures` in a row open it for a pause that doubles each time."""

    def __init__(self, failures: int = 3, first_s: float = 0.5, longest_s: float = 30.0) -> None:
        self._limit, self._first_s, self._longest_s = failures, first_s, longest_s
        self._failures = self._pauses = 0
        self._until_s = -math.inf

    def allows(self, now_s: float) -> bool:
        return now_s >= self._until_s

    def success(self) -> None:
        self._failures = self._pauses = 0
        self._until_s = -math.inf

    def failure(self, now_s: float) -> None:
        self._failures += 1
        if self._failures >= self._limit or self._pauses:
            self._until_s = now_s + min(self._longest_s, self._first_s * 2**self._pauses)
            self._pauses += 1


def fastest_local(ways: Sequence[Way]) -> Way | None:
    """What the coordinator falls back to."""
    local = [way for way in ways if way.is_local]
    return min(local, key=local_ms, default=None)


def local_ms(way: Way) -> float:
    return sum(stage.share * stage.latency_ms for stage in way.stages)


def simulate(
    policy: Policy,
    trace: Trace,
    workload: Workload,
    *,
    fallback: Way | None = None,
    above: Links | None = None,
    power: Power | None = None,
) -> Run:
    """`policy` on `trace`, which begins again at its end. `fallback`: the local way for hedges and open circuits."""
    return _Simulation(policy, trace.looped(), workload, fallback, above, power).run()


class _Simulation:
    def __init__(
        self,
        policy: Policy,
        trace: Trace,
        workload: Workload,
        fallback: Way | None,
        above: Links | None,
        power: Power | None,
    ) -> None:
        self.policy, self.trace, self.workload, self.fallback = policy, trace, workload, fallback
        self.world = World(trace, above, power)
        self.breaker = Breaker()
        self.probe_bytes = self.probe_mj = 0.0
        self._news: list[tuple[float, int, Seen]] = []
        self._count = 0

    def run(self) -> Run:
        random = Random(self.workload.seed)
        outcomes: list[Outcome] = []
        free_s = 0.0
        for index in range(self.workload.requests):
            dice = Dice.throw(random)
            came_s = index / self.workload.rate_hz if self.workload.rate_hz else free_s
            start_s = max(came_s, free_s)
            self._hear(start_s)
            outcome = self._request(came_s, start_s, dice)
            outcomes.append(outcome)
            free_s = came_s + outcome.latency_ms / 1e3 + self.workload.think_ms / 1e3
        return Run(self.policy.name, self.trace.name, tuple(outcomes), self.probe_bytes, self.probe_mj)

    def _hear(self, now_s: float) -> None:
        while self._news and self._news[0][0] <= now_s:
            self.policy.observe(heapq.heappop(self._news)[2])

    def _probe(self, now_s: float, size_bytes: int) -> None:
        ping = self.world.ping(now_s, size_bytes, PING_ANSWER_BYTES)
        self.world.commit(ping)
        self.probe_bytes += size_bytes
        seen_s = min(ping.answer_s, now_s + PING_TIMEOUT_S)
        self.probe_mj += self.world.energy_mj(ping, seen_s)
        took_ms = 1e3 * (seen_s - now_s)
        self._tell(Seen(seen_s, size_bytes, PING_ANSWER_BYTES, took_ms, ping.answer_s <= seen_s, probe=True))

    def _tell(self, seen: Seen) -> None:
        self._count += 1
        heapq.heappush(self._news, (seen.at_s, self._count, seen))

    def _request(self, came_s: float, start_s: float, dice: Dice) -> Outcome:
        choice = self.policy.choose(start_s, self.world)
        size_bytes = self.policy.probe_bytes(start_s, choice)
        if size_bytes:
            self._probe(start_s, size_bytes)
        if choice.way.crossings and not self.breaker.allows(start_s) and self.fallback is not None:
            return self._answered(came_s, start_s, Choice(self.fallback), dice, instead_of=choice)
        return self._answered(came_s, start_s, choice, dice)

    def _answered(
        self, came_s: float, start_s: float, choice: Choice, dice: Dice, instead_of: Choice | None = None
    ) -> Outcome:
        attempt = self.world.attempt(choice, start_s, dice)
        self.world.commit(attempt)
        deadline_s = start_s + self.workload.deadline_ms / 1e3
        end_s, hedged, energy_extra = attempt.answer_s, False, 0.0
        if self.fallback is not None and choice.way.crossings and not attempt.exited:
            device_s = local_ms(self.fallback) / 1e3
            last_s = deadline_s - device_s - self.workload.margin_ms / 1e3
            hedge_s = max(attempt.sent_s, min(last_s, attempt.sent_s + choice.overdue_ms / 1e3))
            if attempt.answer_s > hedge_s:
                energy_extra = sum(stage.energy_mj for stage in self.fallback.stages)
                end_s = min(attempt.answer_s, hedge_s + device_s)
                hedged = attempt.answer_s > end_s
        lost = end_s > deadline_s + 1e-9
        replied = not hedged and attempt.answer_s <= deadline_s + 1e-9
        end_s = min(end_s, deadline_s) if lost and choice.way.crossings else end_s
        if attempt.bytes_sent:
            self._learn(choice, attempt, end_s, replied)
        given = Choice(self.fallback) if hedged and self.fallback is not None else choice
        return Outcome(
            came_s=came_s,
            latency_ms=1e3 * (end_s - came_s),
            choice=instead_of or choice,
            degraded=hedged or instead_of is not None,
            lost=lost,
            exited=attempt.exited,
            bytes_sent=attempt.bytes_sent,
            energy_mj=self.world.energy_mj(attempt, end_s) + energy_extra,
            drop=given.drop,
            agreement=given.agreement,
        )

    def _learn(self, choice: Choice, attempt: Attempt, end_s: float, replied: bool) -> None:
        network_ms = attempt.network_ms if replied else 1e3 * (end_s - attempt.sent_s)
        self._tell(Seen(end_s, attempt.bytes_sent, choice.way.answer_bytes, network_ms, replied))
        if replied:
            self.breaker.success()
        else:
            self.breaker.failure(end_s)

"""Replicas in virtual time: requests come, the server's own Schedule decides, batches take what the model says.

What runs a real node decides here too: admission, order and batches are those of `edgekit.runtimes.server.schedule`,
driven by a clock of numbers instead of the monotonic one. Only the run times and the node's own work are modelled.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.capacity.demand import Objective
from edgekit.capacity.processor import Processor
from edgekit.capacity.replica import Replica
from edgekit.runtimes.server.schedule import Batch, RefusedError, Schedule, Tenant, Ticket

# Of the node's own work on a request, what comes before the model: decoding weighs more than encoding.
BEFORE = 0.6
# A request that finds no place in the node is turned away before it is read: so much of the work on an answered one.
TURNED_AWAY = 0.1
# Threads that stand at the interpreter at one time; further requests wait for a thread.
STANDING = 4
# Calls that a node lets in beyond the places of its queue and its batches.
SPARE_PLACES = 16
# Of the first requests, so many see an emptier server than later ones do, and are not counted.
WARM_UP = 0.1


@dataclass(frozen=True)
class Outcome:
    """Of the requests after the warm-up. `latency_ms` float [n] in the order of coming, links counted; infinite for
    those refused or dropped. `wait_ms` [m] of those that ran. `rows` of each batch."""

    latency_ms: np.ndarray
    wait_ms: np.ndarray
    rows: np.ndarray
    refused: int
    utilisation: float
    answered_hz: float

    def percentile_ms(self, objective: Objective) -> float:
        return objective.value_ms(self.latency_ms)

    @property
    def mean_ms(self) -> float:
        """Of the answered ones; NaN where none was."""
        finite = self.latency_ms[np.isfinite(self.latency_ms)]
        return float(finite.mean()) if len(finite) else math.nan


@dataclass(eq=False)
class _Server:
    """A replica while it is simulated. `step`: of what is expected of its processor, only the latest counts."""

    number: int
    schedule: Schedule
    processor: Processor
    inside: int = 0
    step: int = 0


class Simulation:
    """`servers` equal replicas behind one balancer: each request asks `choices` of them, drawn at random, and goes to
    the one with the fewest inside (1: anywhere; 2: power of two choices)."""

    def __init__(
        self,
        replica: Replica,
        *,
        servers: int = 1,
        choices: int = 1,
        tenants: Sequence[Tenant] = (),
        seed: int = 0,
    ) -> None:
        self.replica, self.choices = replica, min(choices, servers)
        self._rng = np.random.default_rng(seed)
        self._tenants = [tenant.name for tenant in tenants] or [""]
        self._servers = [
            _Server(
                number,
                Schedule("model", replica.batching, tenants=tenants),
                Processor(replica.batching.workers, replica.shares_cores),
            )
            for number in range(servers)
        ]
        self._jitter = np.asarray(replica.service.jitter)
        self._drawn: list[float] = []
        batching = replica.batching
        self._places = batching.queue + batching.max_batch * batching.workers + SPARE_PLACES

    def run(self, arrivals_s: np.ndarray, rows: int = 1) -> Outcome:
        """Requests of `rows` rows at float [n] seconds, rising. Tenants take turns."""
        self._start(arrivals_s, rows)
        while self._events:
            now, _, kind, number, what = heapq.heappop(self._events)
            server = self._servers[number]
            if kind == "arrive":
                self._arrive(what, now)
            elif kind == "due":
                self._take(server, now)
                self._expect(server)
            elif what == server.step:
                self._step(server, now)
        return self._outcome(arrivals_s)

    def _start(self, arrivals_s: np.ndarray, rows: int) -> None:
        self._events: list[tuple[float, int, str, int, int]] = []
        self._count = 0
        self._sent = arrivals_s.tolist()
        self._rows = rows
        self._asked = self._rng.integers(len(self._servers), size=(len(self._sent), self.choices)).tolist()
        self._latency = np.full(len(self._sent), np.inf)
        self._waits: list[tuple[int, float]] = []
        self._batches: list[tuple[float, int, float]] = []
        self._refused: list[int] = []
        self._of: dict[int, int] = {}
        if self._sent:
            self._push(self._sent[0], "arrive", 0, 0)

    def _push(self, when: float, kind: str, server: int, what: int) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, kind, server, what))

    def _expect(self, server: _Server) -> None:
        """What was expected of its processor before counts no more."""
        server.step += 1
        when = server.processor.next_s()
        if when < math.inf:
            self._push(when, "step", server.number, server.step)

    def _arrive(self, index: int, now: float) -> None:
        if index + 1 < len(self._sent):
            self._push(self._sent[index + 1], "arrive", 0, index + 1)
        server = min((self._servers[number] for number in self._asked[index]), key=lambda one: one.inside)
        work_s = self.replica.overhead.request_s
        if server.inside >= self._places:
            self._refused.append(index)
            server.processor.add_own(("away", index), TURNED_AWAY * work_s, now)
        else:
            server.inside += 1
            server.processor.add_own(("in", index), BEFORE * work_s, now)
        self._expect(server)

    def _step(self, server: _Server, now: float) -> None:
        own, batches = server.processor.done(now)
        for batch in batches:
            assert isinstance(batch, Batch)
            # Its thread comes back from the runtime and waits for the interpreter, which goes to any that stands there.
            standing = int(self._rng.integers(STANDING + 1))
            server.processor.add_own(("end", batch), self.replica.overhead.batch_s, now, behind=standing)
        for piece in own:
            assert isinstance(piece, tuple)
            kind, index = piece
            if kind == "end":
                self._finish(server, index, now)
            elif kind == "in":
                self._admit(server, index, now)
            elif kind == "out":
                self._answer(server, index, now)
            elif kind == "refuse":
                server.inside -= 1
        self._take(server, now)
        self._expect(server)

    def _admit(self, server: _Server, index: int, now: float) -> None:
        tenant = self._tenants[index % len(self._tenants)]
        ticket = Ticket(self._rows, (), now + self.replica.deadline_s, tenant)
        try:
            server.schedule.admit([ticket], now)
        except RefusedError:
            self._refused.append(index)
            server.processor.add_own(("refuse", index), (1 - BEFORE) * self.replica.overhead.request_s, now)
            return
        self._of[id(ticket)] = index
        self._take(server, now)

    def _take(self, server: _Server, now: float) -> None:
        while (batch := server.schedule.take(now)) is not None:
            server.processor.add_batch(batch, self._seconds(batch.rows), now)
        due = server.schedule.due_s()
        if now < due < math.inf and server.schedule.has_room:
            self._push(due, "due", server.number, 0)

    def _seconds(self, rows: int) -> float:
        if not self._drawn:
            self._drawn = self._rng.choice(self._jitter, 4096).tolist()
        return self.replica.service.seconds(rows) * self._drawn.pop()

    def _finish(self, server: _Server, batch: Batch, now: float) -> None:
        server.schedule.finish(batch, now)
        self._batches.append((batch.started_s, batch.rows, now - batch.started_s))
        for ticket in batch.tickets:
            index = self._of.pop(id(ticket))
            self._waits.append((index, batch.started_s - ticket.arrived_s))
            late = now > ticket.deadline_s
            kind = "refuse" if late else "out"
            server.processor.add_own((kind, index), (1 - BEFORE) * self.replica.overhead.request_s, now)

    def _answer(self, server: _Server, index: int, now: float) -> None:
        server.inside -= 1
        around_s = self.replica.overhead.hop_s + self.replica.crossing.latency_s
        self._latency[index] = 1e3 * (now - self._sent[index] + around_s)

    def _outcome(self, arrivals_s: np.ndarray) -> Outcome:
        first = int(WARM_UP * len(arrivals_s))
        begin = float(arrivals_s[first]) if len(arrivals_s) else 0.0
        span = max(float(arrivals_s[-1]) - begin, 1e-12) if len(arrivals_s) else 1.0
        counted = [batch for batch in self._batches if begin <= batch[0] <= begin + span]
        latency = self._latency[first:]
        busy = sum(seconds for _, _, seconds in counted)
        return Outcome(
            latency_ms=latency,
            wait_ms=np.array([1e3 * wait for index, wait in self._waits if index >= first]),
            rows=np.array([rows for _, rows, _ in counted]),
            refused=sum(index >= first for index in self._refused),
            utilisation=busy / (span * self.replica.batching.workers * len(self._servers)),
            answered_hz=float(np.isfinite(latency).sum()) / span,
        )

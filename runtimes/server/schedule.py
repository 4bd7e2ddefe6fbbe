"""Which requests a model lets in, and which of them run together: the policy alone, without threads and clocks.

Every time is in seconds on the caller's clock and passed in: a node drives a Schedule by the monotonic clock
(`batching`), a simulation by its own (`edgekit.capacity`).

- **Admission**: a request is refused at once where the queue is full, its tenant is over its quota, or its answer is
  expected behind its deadline. Where there are coarser ways to answer, they are tried before it is refused.
- **Order**: start-time fair queueing among tenants (Goyal, Vin and Cheng, SIGCOMM 1996): of tenants that always have
  something waiting, each gets rows in proportion to its share; one tenant alone is served first come, first served.
- **Batches**: the first in that order, and those of its kind and level behind it that fit. A request with a deadline
  runs with no more rows than half of its time allows: the other half is for the batch before it.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from edgekit.errors import OverloadedError
from edgekit.runtimes.server.pace import Pace

MAX_KINDS = 256  # whose paces are remembered
ANY = "any"  # the kind of what is not made ready yet: it may join whoever waits


class RefusedError(OverloadedError):
    """`retry_after_s`: when there should be room again, by the pace of late."""

    retry_after_s: float

    def __init__(self, message: str, retry_after_s: float, advice: str = "") -> None:
        wait = f"try again in {max(1, round(retry_after_s))} s"
        super().__init__(message, hint=f"{wait}, or {advice}" if advice else wait)
        self.retry_after_s = retry_after_s


class QueueFullError(RefusedError):
    pass


class QuotaError(RefusedError):
    pass


class LateError(RefusedError):
    """The answer would come behind the deadline."""


@dataclass(frozen=True)
class BatchOptions:
    """`max_batch` rows run together; a first row waits up to `max_delay_ms` for company (0: takes who is there);
    beyond `queue` waiting requests further ones are refused. `workers` batches run side by side, each in a session of
    its own."""

    max_batch: int = 16
    max_delay_ms: float = 0.0
    queue: int = 64
    workers: int = 1


@dataclass(frozen=True)
class Tenant:
    """`share`: of the rows and of the places in the queue, against the other tenants'. `rows_per_s`: at most, on
    average; `burst_rows` may come at once, None allows one second's."""

    name: str = ""
    share: float = 1.0
    rows_per_s: float = math.inf
    burst_rows: float | None = None

    @property
    def burst(self) -> float:
        return self.rows_per_s if self.burst_rows is None else self.burst_rows


@dataclass(eq=False)
class Ticket:
    """A request as the schedule sees it. `kind`: what must agree for two of them to run as one.

    Set when it is let in: `level`, how coarse its answer is (0 is the model itself), and `company`, the rows of the
    largest batch that it may be in.
    """

    rows: int
    kind: Hashable = ()
    deadline_s: float = math.inf
    tenant: str = ""
    arrived_s: float = 0.0
    level: int = 0
    company: int = 1
    start_tag: float = 0.0


@dataclass(eq=False)
class Batch:
    """What runs together, and what was `late`: its deadline passed while it waited. `expected_s`: how long a run should
    take."""

    tickets: list[Ticket]
    late: list[Ticket]
    rows: int
    level: int
    started_s: float
    expected_s: float


@dataclass(eq=False)
class _Account:
    """A tenant's place in the order, and what is left of its quota."""

    tenant: Tenant
    finish_tag: float = 0.0
    allowance: float = 0.0
    counted_s: float = -math.inf
    rows: int = 0
    waiting: int = 0
    coming: int = 0

    def charge(self, rows: int, now: float) -> float:
        """0 where `rows` are within the quota, which they then use up; else the seconds until they would be."""
        if math.isinf(self.tenant.rows_per_s):
            return 0.0
        burst = max(self.tenant.burst, float(rows))
        earned = self.tenant.rows_per_s * (now - self.counted_s) if self.counted_s > -math.inf else burst
        self.allowance, self.counted_s = min(burst, self.allowance + earned), now
        if self.allowance < rows:
            return (rows - self.allowance) / self.tenant.rows_per_s
        self.allowance -= rows
        return 0.0


@dataclass(eq=False)
class _Group:
    """What may run together: tickets of one kind and level, by tenant in the order of their coming."""

    queues: dict[str, deque[Ticket]] = field(default_factory=dict)
    rows: int = 0

    def head(self) -> Ticket:
        return min((queue[0] for queue in self.queues.values()), key=lambda ticket: ticket.start_tag)

    def fitting(self, room: int) -> Ticket | None:
        heads = [queue[0] for queue in self.queues.values() if queue[0].rows <= room]
        return min(heads, key=lambda ticket: ticket.start_tag) if heads else None


class Schedule:
    """Not safe to use from several threads at once. `levels`: ways to answer, the model itself first."""

    def __init__(
        self,
        name: str,
        options: BatchOptions = BatchOptions(),
        *,
        batchable: bool = True,
        levels: int = 1,
        tenants: Iterable[Tenant] = (),
    ) -> None:
        self.name, self.options, self.batchable = name, options, batchable
        self.paces = [Pace() for _ in range(levels)]
        self._paces_of: OrderedDict[tuple[Hashable, int], Pace] = OrderedDict()
        self.waiting = self.coming = 0
        self.running: list[Batch] = []
        self.in_a_hurry = False  # nobody more will come: what waits is due
        self._accounts = {tenant.name: _Account(tenant) for tenant in tenants}
        self._groups: dict[tuple[Hashable, int], _Group] = {}
        self._virtual = 0.0

    @property
    def max_batch(self) -> int:
        return self.options.max_batch if self.batchable else 1

    @property
    def has_room(self) -> bool:
        """Whether a worker is free."""
        return len(self.running) < self.options.workers

    def admit(self, tickets: Sequence[Ticket], now: float) -> None:
        """All of one request's, or none. Raises QueueFullError, QuotaError or LateError."""
        rows, account = sum(ticket.rows for ticket in tickets), self._account(tickets[0].tenant)
        self._check_room(account, len(tickets))
        level, company = self._level(tickets, rows, now)
        wait_s = account.charge(rows, now)
        if wait_s > 0:
            raise QuotaError(
                f"the tenant {account.tenant.name!r} is over its quota of {account.tenant.rows_per_s:g} rows a second",
                wait_s,
            )
        for ticket in tickets:
            ticket.level, ticket.company, ticket.arrived_s = level, company, now
            self._enqueue(ticket, account)

    def expect(self, tickets: Sequence[Ticket], now: float) -> None:
        """Of one request, which must be made ready first (decoded); their kind is ANY. They take places until `came`.
        Raises QueueFullError or LateError where it would be made ready in vain."""
        account, count = self._account(tickets[0].tenant), len(tickets)
        self._check_room(account, count, account.coming, self.coming)
        self._level(tickets, count, now)
        account.coming += count
        self.coming += count

    def came(self, tickets: Sequence[Ticket]) -> None:
        """Ready to be admitted, or given up."""
        self._account(tickets[0].tenant).coming -= len(tickets)
        self.coming -= len(tickets)

    def due_s(self) -> float:
        """When `take` has something to give: -inf for now, inf where nothing waits."""
        first = self._first()
        if first is None:
            return math.inf
        waits = self.options.max_delay_ms > 0 and self.batchable and not self.in_a_hurry
        if not waits or self._group(first).rows >= first.company:
            return -math.inf
        return first.arrived_s + self.options.max_delay_ms / 1e3

    def take(self, now: float) -> Batch | None:
        """The next batch, which then counts as running until `finish`, also where all of it was late. None where no
        worker is free or nothing is due."""
        first = self._first()
        if first is None or not self.has_room or self.due_s() > now:
            return None
        batch = Batch([], [], 0, first.level, now, 0.0)
        group, room = self._group(first), first.company
        ticket: Ticket | None = first
        while ticket is not None:
            self._remove(ticket)
            self._virtual = max(self._virtual, ticket.start_tag) if self.waiting else 0.0
            if ticket.deadline_s <= now:
                batch.late.append(ticket)
            else:
                batch.tickets.append(ticket)
                batch.rows += ticket.rows
                room = min(room, max(ticket.company, batch.rows))
            ticket = group.fitting(room - batch.rows) if self.batchable or not batch.tickets else None
        batch.expected_s = self.pace(first.kind, batch.level).seconds(batch.rows) if batch.tickets else 0.0
        self.running.append(batch)
        return batch

    def drop(self) -> list[Ticket]:
        """Takes out all that wait."""
        dropped: list[Ticket] = []
        while (first := self._first()) is not None:
            self._remove(first)
            dropped.append(first)
        return dropped

    def learn(self, level: int, rows: int, seconds: float) -> None:
        """A run that happened elsewhere, such as one to warm up."""
        self.paces[level].learn(rows, seconds)

    def pace(self, kind: Hashable, level: int) -> Pace:
        """Of batches of that kind; where none ran yet, of the level."""
        return self._paces_of.get((kind, level), self.paces[level])

    def finish(self, batch: Batch, now: float, *, learn: bool = True) -> None:
        """`batch` came to its end. `learn` False where it did not run as one (failed, or was dropped)."""
        self.running.remove(batch)
        if learn and now > batch.started_s:
            self._learn(batch, now - batch.started_s)

    def _learn(self, batch: Batch, seconds: float) -> None:
        """Kinds differ in cost (lengths do): each has a pace of its own, which begins in the shape of its level's."""
        key = (batch.tickets[0].kind, batch.level)
        if key not in self._paces_of:
            self._paces_of[key] = self.paces[batch.level].like(batch.rows, seconds)
            if len(self._paces_of) > MAX_KINDS:
                self._paces_of.popitem(last=False)
        self._paces_of.move_to_end(key)
        self._paces_of[key].learn(batch.rows, seconds)
        self.paces[batch.level].learn(batch.rows, seconds)

    def expected_s(self, ticket: Ticket, rows: int, level: int, now: float, company: int) -> float:
        """From `now` until `rows` more like `ticket` would be answered at `level`, with a margin that is rarely
        exceeded. `company`: rows of the batches that they and those before them run in."""
        pace, workers = self.pace(ticket.kind, level), self.options.workers
        ahead, total = self._rows_ahead(self._account(ticket.tenant)), self._rows_waiting()
        runs, work_s = self._runs_and_work(company, (ticket.kind, level))
        share = ahead / total if total else 0.0
        start_s = delay_s = 0.0
        if not self.has_room:
            left = [max(0.0, batch.started_s + batch.expected_s - now) for batch in self.running]
            start_s = max(min(left), (sum(left) + share * work_s) / workers if total else 0.0)
            rows = max(rows, company)  # those who come later join
        elif self.batchable and ahead + rows < company:
            delay_s = self.options.max_delay_ms / 1e3
        return start_s + pace.seconds(rows) + pace.late_by(company, share * runs / workers + 1) + delay_s

    def _check_room(self, account: _Account, count: int, own: int = 0, all: int = 0) -> None:
        """Raises QueueFullError where `count` more do not fit beside those that wait and `own` and `all` that come.
        What a free worker takes at once needs no place."""
        free = self.options.workers - len(self.running)
        places = {"": self.options.queue}
        if len(self._accounts) > 1:
            shares = sum(one.tenant.share for one in self._accounts.values())
            places[account.tenant.name] = max(1, int(self.options.queue * account.tenant.share / shares))
        for tenant, allowed in places.items():
            waiting = account.waiting + own if tenant else self.waiting + all
            if waiting + count > allowed + free:
                whose = f" for the tenant {tenant!r}" if tenant else ""
                raise QueueFullError(
                    f"the queue of {self.name} is full{whose}: {waiting} wait, allowed {allowed}",
                    self._work_s(),
                    "give the node a larger --queue",
                )

    def _level(self, tickets: Sequence[Ticket], rows: int, now: float) -> tuple[int, int]:
        """The finest level that answers in time, and the rows of the batch; coarser ones as the queue fills, since a
        far deadline keeps nobody from being refused by a full one. A model that is idle tries what it may not manage:
        else it would never learn that it can."""
        deadline = min(ticket.deadline_s for ticket in tickets)
        filled = (self.waiting + self.coming) / self.options.queue
        finest = min(len(self.paces) - 1, int(filled * len(self.paces)))
        if math.isinf(deadline):
            return finest, self.max_batch
        expected, company = 0.0, self.max_batch
        for level in range(finest, len(self.paces)):
            pace = self.pace(tickets[0].kind, level)
            company = max(tickets[0].rows, min(self.max_batch, pace.rows_within((deadline - now) / 2)))
            expected = self.expected_s(tickets[0], rows, level, now, company)
            if not pace.is_known or now + expected <= deadline:
                return level, company
        if not self.running and not self.waiting:
            return len(self.paces) - 1, company
        raise LateError(
            f"{self.name} would answer in {1e3 * expected:.0f} ms, the deadline is in {1e3 * (deadline - now):.0f} ms",
            self._work_s(),
            "give it more time",
        )

    def _account(self, tenant: str) -> _Account:
        if tenant not in self._accounts:
            self._accounts[tenant] = _Account(Tenant(tenant))
        return self._accounts[tenant]

    def _enqueue(self, ticket: Ticket, account: _Account) -> None:
        ticket.start_tag = max(self._virtual, account.finish_tag)
        account.finish_tag = ticket.start_tag + ticket.rows / account.tenant.share
        account.rows += ticket.rows
        account.waiting += 1
        group = self._groups.setdefault((ticket.kind, ticket.level), _Group())
        group.queues.setdefault(ticket.tenant, deque()).append(ticket)
        group.rows += ticket.rows
        self.waiting += 1

    def _group(self, ticket: Ticket) -> _Group:
        return self._groups[ticket.kind, ticket.level]

    def _first(self) -> Ticket | None:
        heads = [group.head() for group in self._groups.values()]
        return min(heads, key=lambda ticket: ticket.start_tag) if heads else None

    def _remove(self, ticket: Ticket) -> None:
        """The head of its tenant's queue."""
        group = self._group(ticket)
        queue = group.queues[ticket.tenant]
        assert queue[0] is ticket
        queue.popleft()
        if not queue:
            del group.queues[ticket.tenant]
        group.rows -= ticket.rows
        if not group.queues:
            del self._groups[ticket.kind, ticket.level]
        account = self._account(ticket.tenant)
        account.rows -= ticket.rows
        account.waiting -= 1
        self.waiting -= 1
        if not self.waiting:  # nobody is owed anything
            self._virtual = 0.0
            for account in self._accounts.values():
                account.finish_tag = 0.0

    def _rows_waiting(self) -> int:
        return sum(group.rows for group in self._groups.values())

    def _rows_ahead(self, account: _Account) -> float:
        """Rows that are served before one more of this tenant: its own, and others' at their shares meanwhile."""
        total = self._rows_waiting()
        others = [one for one in self._accounts.values() if one.rows and one is not account]
        if not others:
            return total
        own = account.rows / account.tenant.share
        return min(total, account.rows + sum(min(one.rows, own * one.tenant.share + 1) for one in others))

    def _runs_and_work(self, company: int, joined: tuple[Hashable, int] | None = None) -> tuple[int, float]:
        """Batches of up to `company` rows that wait, and the seconds that they take on one worker. Of the group
        `joined` only full ones: the rest will run with who joins it."""
        runs, work_s = 0, 0.0
        for key, group in self._groups.items():
            full, rest = divmod(group.rows, company)
            rest = 0 if joined in (key, (ANY, key[1])) else rest
            runs += full + bool(rest)
            pace = self.pace(*key)
            work_s += full * pace.seconds(company) + (pace.seconds(rest) if rest else 0.0)
        return runs, work_s

    def _work_s(self) -> float:
        return self._runs_and_work(self.max_batch)[1] / self.options.workers

"""Dynamic batching: requests wait in a bounded queue, what waits together runs together.

Who is let in and who runs with whom is decided by a `Schedule`; here are the threads that carry it out. A call that
finds a worker free runs at once in its own thread; worker threads take care of what had to wait. So an idle node adds
no hand-over to the latency, and a busy one always has its next batch at hand.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from edgekit.errors import DeadlineError, EdgekitError, SessionError, UnreachableError
from edgekit.runtimes.codecs.rows import CodedRows
from edgekit.runtimes.server.padding import Padding
from edgekit.runtimes.server.schedule import ANY, Batch, BatchOptions, Schedule, Tenant, Ticket

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
Observe = Callable[["Finished"], None]


@dataclass(frozen=True)
class Finished:
    """A batch that ran: rows, requests, and monotonic nanoseconds of its start and end."""

    rows: int
    requests: int
    started_ns: int
    ended_ns: int
    failed: bool


@dataclass(eq=False)
class _Item(Ticket):
    feeds: Arrays = field(default_factory=dict)
    queued_ns: int = field(default_factory=time.perf_counter_ns)
    done: threading.Event = field(default_factory=threading.Event)
    outputs: Arrays = field(default_factory=dict)
    error: EdgekitError | None = None
    batch: Finished | None = None


@dataclass(frozen=True)
class Ran:
    """`level`: 0 is the model itself, above it a coarser one."""

    outputs: Arrays
    queue_ns: int
    compute_ns: int
    started_ns: int
    level: int


class Batcher:
    """`workers[w][l]` runs level l in worker w, one call at a time; with `batchable` it takes any number of rows along
    the first axis. Safe to use from many threads."""

    def __init__(
        self,
        name: str,
        workers: Sequence[Sequence[Run]],
        batchable: bool,
        options: BatchOptions = BatchOptions(),
        observe: Observe | None = None,
        tenants: Iterable[Tenant] = (),
        padding: Padding | None = None,
    ) -> None:
        """`options.workers` is the length of `workers`. `padding`: how requests of different lengths run together."""
        self.name, self.batchable = name, batchable
        self._padding = padding if batchable else None
        self.schedule = Schedule(name, options, batchable=batchable, levels=len(workers[0]), tenants=tenants)
        self._observe = observe
        self._condition = threading.Condition()
        self._free = list(workers)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"edgekit {name} {number}", daemon=True)
            for number in range(len(workers))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return self.schedule.waiting

    @property
    def is_idle(self) -> bool:
        return not self.schedule.running and not self.schedule.waiting

    def learn(self, level: int, rows: int, seconds: float) -> None:
        """A run that happened elsewhere, such as one to warm up."""
        with self._condition:
            self.schedule.learn(level, rows, seconds)

    @contextmanager
    def expecting(self, count: int, deadline: float, tenant: str) -> Iterator[None]:
        """While `count` requests of a row are made ready, for `infer`. Raises QueueFullError or LateError where they
        would be refused, before any work is done."""
        tickets = [Ticket(1, ANY, deadline, tenant)] * count
        with self._condition:
            self.schedule.expect(tickets, time.monotonic())
        try:
            yield
        finally:
            with self._condition:
                self.schedule.came(tickets)

    def infer(self, feeds: Sequence[Arrays], deadline: float = math.inf, tenant: str = "") -> list[Ran]:
        """Each of `feeds` as one request; the answers in the same order. `deadline` on `time.monotonic`'s clock.

        Raises QueueFullError, QuotaError, LateError, DeadlineError (dropped before its turn, or not done by then),
        SessionError.
        """
        items = [
            _Item(
                rows=len(next(iter(entry.values()))) if self.batchable else 1,
                kind=self._kind(entry),
                deadline_s=deadline,
                tenant=tenant,
                feeds=entry,
            )
            for entry in feeds
        ]
        claimed = self._enter(items)
        if claimed is not None:
            self._execute(*claimed)
        return [self._result(item) for item in items]

    def _enter(self, items: list[_Item]) -> tuple[Batch, Sequence[Run]] | None:
        """A batch that the caller is to run itself, where nobody waited before it. Else its items wait."""
        with self._condition:
            if self._closed:
                raise self._closing()
            now, is_first = time.monotonic(), not self.schedule.waiting
            self.schedule.admit(items, now)
            claimed = self._claim(now) if is_first else None
            if self.schedule.waiting and self.schedule.has_room:
                self._condition.notify()
            return claimed

    def _claim(self, now: float) -> tuple[Batch, Sequence[Run]] | None:
        batch = self.schedule.take(now)
        return None if batch is None else (batch, self._free.pop())

    def _result(self, item: _Item) -> Ran:
        if item.deadline_s == math.inf:
            item.done.wait()
        elif not item.done.wait(max(0.0, item.deadline_s - time.monotonic())):
            raise DeadlineError(f"{self.name} did not answer by the deadline")
        if item.error is not None:
            raise item.error
        assert item.batch is not None
        start, end = item.batch.started_ns, item.batch.ended_ns
        return Ran(item.outputs, start - item.queued_ns, end - start, start, item.level)

    def _work(self) -> None:
        while True:
            with self._condition:
                while (claimed := self._claim(time.monotonic())) is None:
                    if self._closed and not self.schedule.waiting:
                        return
                    due_s = self.schedule.due_s() if self.schedule.has_room else math.inf
                    self._condition.wait(None if math.isinf(due_s) else max(0.0, due_s - time.monotonic()))
            self._execute(*claimed)

    def _execute(self, batch: Batch, runs: Sequence[Run]) -> None:
        """The batch in the worker that is claimed for it, which is then free again."""
        together = False
        try:
            for item in batch.late:
                assert isinstance(item, _Item)
                item.error = DeadlineError(f"the deadline passed while the request waited for {self.name}")
                item.done.set()
            items = [item for item in batch.tickets if isinstance(item, _Item)]
            together = bool(items) and self._answer(items, runs[batch.level])
        finally:
            with self._condition:
                self.schedule.finish(batch, time.monotonic(), learn=together)
                self._free.append(runs)
                if self.schedule.waiting or self._closed:
                    self._condition.notify_all()

    def _answer(self, items: list[_Item], run: Run) -> bool:
        """Whether they ran as one. One request must not spoil the others: where they fail together, each runs alone."""
        try:
            self._run_together(items, run)
        except Exception as error:
            if len(items) > 1:
                for item in items:
                    self._answer([item], run)
            else:
                items[0].error = (
                    error if isinstance(error, EdgekitError) else SessionError(f"{self.name} failed: {error}")
                )
            return False
        finally:
            for item in items:
                item.done.set()
        return True

    def _run_together(self, items: list[_Item], run: Run) -> None:
        start, failed, rows = time.perf_counter_ns(), True, sum(item.rows for item in items)
        try:
            if len(items) == 1:
                items[0].outputs = run(items[0].feeds)
            else:
                outputs = run(self._together([item.feeds for item in items]))
                if any(len(array) != rows for array in outputs.values()):
                    raise SessionError(f"{self.name} does not keep the batch: {rows} rows in, others out")
                at = 0
                for item in items:
                    rows_of = {name: array[at : at + item.rows] for name, array in outputs.items()}
                    item.outputs = self._own(rows_of, item.feeds)
                    at += item.rows
            failed = False
        finally:
            finished = Finished(rows, len(items), start, time.perf_counter_ns(), failed)
            for item in items:
                item.batch = finished
            if self._observe is not None:
                self._observe(finished)

    def _kind(self, feeds: Arrays) -> Hashable:
        """What must agree for two requests to run as one: everything but the first axis, and what padding hides."""
        if isinstance(feeds, CodedRows):
            return feeds.kind
        if self._padding is not None:
            return self._padding.kind(feeds)
        return tuple((name, array.shape[1:]) for name, array in feeds.items())

    def _together(self, many: Sequence[Arrays]) -> Arrays:
        coded = [feeds for feeds in many if isinstance(feeds, CodedRows)]
        if coded:
            return CodedRows.join(coded)
        if self._padding is not None:
            return self._padding.join(many)
        return {name: np.concatenate([feeds[name] for feeds in many]) for name in many[0]}

    def _own(self, outputs: Arrays, feeds: Arrays) -> Arrays:
        """What is the request's own of its rows."""
        if self._padding is None or isinstance(feeds, CodedRows):
            return outputs
        return {name: self._padding.cut(name, rows, feeds) for name, rows in outputs.items()}

    def refuse_waiting(self) -> None:
        """Those that have not begun; like any that come from now on."""
        with self._condition:
            self._closed = True
            dropped = self.schedule.drop()
            self._condition.notify_all()
        for item in dropped:
            assert isinstance(item, _Item)
            item.error = self._closing()
            item.done.set()

    def _closing(self) -> UnreachableError:
        return UnreachableError(f"the model {self.name} is closing", hint="ask another node")

    def close(self) -> None:
        """Refuses further requests, finishes those that wait, and ends the workers."""
        with self._condition:
            self._closed = self.schedule.in_a_hurry = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        with self._condition:
            while self.schedule.running:
                self._condition.wait()

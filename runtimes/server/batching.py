"""Dynamic batching: requests wait in a bounded queue, what waits together runs together, one run at a time.

A call that finds the model idle runs at once in its own thread; a worker thread takes care of what had to wait. So an
idle node adds no hand-over to the latency, and a busy one always has its next batch at hand.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.errors import DeadlineError, EdgekitError, OverloadedError, SessionError, UnreachableError

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
Observe = Callable[["Finished"], None]


class QueueFullError(OverloadedError):
    """`retry_after_s`: when the queue should have room again, by the pace of late."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(
            message, hint=f"try again in {max(1, round(retry_after_s))} s, or give the node a larger --queue"
        )
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class BatchOptions:
    """`max_batch` rows run together; a first row waits up to `max_delay_ms` for company (0: takes who is there);
    beyond `queue` waiting requests further ones are refused."""

    max_batch: int = 16
    max_delay_ms: float = 0.0
    queue: int = 64


@dataclass(frozen=True)
class Finished:
    """A batch that ran: rows, requests, and monotonic nanoseconds of its start and end."""

    rows: int
    requests: int
    started_ns: int
    ended_ns: int
    failed: bool


@dataclass(eq=False)
class _Item:
    feeds: Arrays
    rows: int
    deadline: float
    queued_ns: int = field(default_factory=time.perf_counter_ns)
    done: threading.Event = field(default_factory=threading.Event)
    outputs: Arrays = field(default_factory=dict)
    error: EdgekitError | None = None
    batch: Finished | None = None
    abandoned: bool = False

    @property
    def kind(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What must agree for two of them to run as one: everything but the first axis."""
        return tuple((name, array.shape[1:]) for name, array in self.feeds.items())


@dataclass(frozen=True)
class Ran:
    outputs: Arrays
    queue_ns: int
    compute_ns: int
    started_ns: int


class Batcher:
    """`run` is called by one thread at a time; with `batchable` it takes any number of rows along the first axis."""

    def __init__(
        self,
        name: str,
        run: Run,
        batchable: bool,
        options: BatchOptions = BatchOptions(),
        observe: Observe | None = None,
    ) -> None:
        self.name, self.batchable, self.options = name, batchable, options
        self._run, self._observe = run, observe
        self._condition = threading.Condition()
        self._waiting: deque[_Item] = deque()
        self._busy = self._closed = False
        self._row_s = 0.0
        self._thread = threading.Thread(target=self._work, name=f"edgekit {name}", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        return not self._busy and not self._waiting

    def infer(self, feeds: Sequence[Arrays], deadline: float = float("inf")) -> list[Ran]:
        """Each of `feeds` as one request; the answers in the same order. `deadline` on `time.monotonic`'s clock.

        Raises QueueFullError, DeadlineError (dropped before its turn, or not done by then), SessionError.
        """
        items = [_Item(entry, len(next(iter(entry.values()))) if self.batchable else 1, deadline) for entry in feeds]
        if self._enter(items):
            try:
                self._execute(items)
            finally:
                self._leave()
        return [self._result(item) for item in items]

    def _enter(self, items: list[_Item]) -> bool:
        """True: the caller is to run them itself. Else they wait."""
        with self._condition:
            if self._closed:
                raise UnreachableError(f"the model {self.name} is closing", hint="ask another node")
            if len(items) == 1 and not self._busy and not self._waiting and self.options.max_delay_ms == 0:
                self._busy = True
                return True
            if len(self._waiting) + len(items) > self.options.queue:
                rows = sum(item.rows for item in self._waiting)
                raise QueueFullError(
                    f"the queue of {self.name} is full: {len(self._waiting)} wait, allowed {self.options.queue}",
                    rows * self._row_s,
                )
            self._waiting.extend(items)
            self._condition.notify_all()
            return False

    def _leave(self) -> None:
        with self._condition:
            self._busy = False
            if self._waiting or self._closed:
                self._condition.notify_all()

    def _result(self, item: _Item) -> Ran:
        if item.deadline == float("inf"):
            item.done.wait()
        elif not item.done.wait(max(0.0, item.deadline - time.monotonic())):
            item.abandoned = True
            raise DeadlineError(f"{self.name} did not answer by the deadline")
        if item.error is not None:
            raise item.error
        assert item.batch is not None
        start, end = item.batch.started_ns, item.batch.ended_ns
        return Ran(item.outputs, start - item.queued_ns, end - start, start)

    def _work(self) -> None:
        while True:
            with self._condition:
                while self._busy or not self._waiting:
                    if self._closed and not self._waiting:
                        return
                    self._condition.wait()
                self._busy = True
                batch = self._take()
            try:
                self._execute(batch)
            finally:
                self._leave()

    def _take(self) -> list[_Item]:
        """The oldest, and those of its kind behind it that fit; holds the lock, and waits in it for `max_delay_ms`."""
        first = self._waiting[0]
        if self.batchable and self.options.max_delay_ms:
            due = first.queued_ns + int(1e6 * self.options.max_delay_ms)
            while (left := due - time.perf_counter_ns()) > 0 and not self._closed:
                if sum(item.rows for item in self._waiting) >= self.options.max_batch:
                    break
                self._condition.wait(left / 1e9)
        batch, rows, kept = [self._waiting.popleft()], first.rows, deque[_Item]()
        while self.batchable and self._waiting:
            item = self._waiting.popleft()
            if rows + item.rows <= self.options.max_batch and item.kind == first.kind:
                batch.append(item)
                rows += item.rows
            else:
                kept.append(item)
        if self.batchable:
            self._waiting = kept
        return batch

    def _execute(self, batch: list[_Item]) -> None:
        now = time.monotonic()
        due = [item for item in batch if not item.abandoned and item.deadline > now]
        for item in batch:
            if item not in due:
                item.error = DeadlineError(f"the deadline passed while the request waited for {self.name}")
                item.done.set()
        if not due:
            return
        try:
            self._run_together(due)
        except Exception as error:
            if len(due) > 1:
                # One request must not spoil the others: each runs alone.
                for item in due:
                    self._execute([item])
                return
            due[0].error = error if isinstance(error, EdgekitError) else SessionError(f"{self.name} failed: {error}")
        finally:
            for item in due:
                item.done.set()

    def _run_together(self, items: list[_Item]) -> None:
        start, failed, rows = time.perf_counter_ns(), True, sum(item.rows for item in items)
        try:
            if len(items) == 1:
                items[0].outputs = self._run(items[0].feeds)
            else:
                names = items[0].feeds
                outputs = self._run({name: np.concatenate([item.feeds[name] for item in items]) for name in names})
                if any(len(array) != rows for array in outputs.values()):
                    raise SessionError(f"{self.name} does not keep the batch: {rows} rows in, others out")
                at = 0
                for item in items:
                    item.outputs = {name: array[at : at + item.rows] for name, array in outputs.items()}
                    at += item.rows
            failed = False
        finally:
            end = time.perf_counter_ns()
            self._row_s = 0.9 * self._row_s + 0.1 * (end - start) / 1e9 / rows
            finished = Finished(rows, len(items), start, end, failed)
            for item in items:
                item.batch = finished
            if self._observe is not None:
                self._observe(finished)

    def close(self) -> None:
        """Refuses further requests, finishes those that wait, and ends the worker."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join()
        with self._condition:
            while self._busy:
                self._condition.wait()

"""A request to an iterated model from its coming to its end, as the one who waits for it sees it."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from edgekit.errors import DeadlineError, EdgekitError
from edgekit.runtimes.server.sequences import Finish, Iterated


@dataclass(frozen=True)
class Outcome:
    """`degraded`: the answer is shorter than the request asked for, by a deadline or a budget. Times in nanoseconds."""

    tensors: dict[str, np.ndarray]
    finish: Finish
    degraded: bool
    steps: int
    queue_ns: int
    compute_ns: int


@dataclass(eq=False)
class Ongoing:
    """A request from its coming to its end. `result` or `pieces` is for the one thread that waits for it.

    `deadline_s` on `time.monotonic`'s clock."""

    sequence: Iterated
    deadline_s: float
    tenant: str
    queued_ns: int = field(default_factory=time.perf_counter_ns)
    joined_ns: int = 0
    steps: int = 0
    slot: int = -1
    is_cancelled: bool = False
    outcome: Outcome | None = None
    error: EdgekitError | None = None
    _moved: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)
    _done: threading.Event = field(default_factory=threading.Event)

    def result(self) -> Outcome:
        """Raises DeadlineError where nothing was answered in time, SessionError, UnreachableError."""
        if not self._done.wait(self._left_s()):
            self.cancel()
            raise DeadlineError("a step of the model did not end by the deadline")
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome

    def pieces(self) -> Iterator[dict[str, np.ndarray]]:
        """What is new, as it comes; `result` then has all of it. Raises like `result`."""
        told = 0
        while True:
            try:
                self._moved.get(timeout=self._left_s())
            except queue.Empty:
                self.result()
            # In this order: what is done produces no more.
            is_done, produced = self._done.is_set(), self.sequence.produced
            if produced > told:
                yield self.sequence.answer(told, produced)
                told = produced
            if is_done:
                self.result()
                return

    def tell(self) -> None:
        """There is more to read."""
        self._moved.put(None)

    def _left_s(self) -> float | None:
        return None if math.isinf(self.deadline_s) else max(0.0, self.deadline_s - time.monotonic())

    def cancel(self) -> None:
        """Nobody wants it any more: it leaves at the next border."""
        self.is_cancelled = True

    def is_over(self, now: float) -> bool:
        """Nothing that begins now is of use."""
        return self.is_cancelled or self.deadline_s <= now

    def end(self, outcome: Outcome | None, error: EdgekitError | None = None) -> None:
        self.outcome, self.error = outcome, error
        self._done.set()
        self._moved.put(None)

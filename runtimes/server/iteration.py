"""Continuous batching of iterated models: requests join and leave the running batch at the borders of its steps.

At each border those who are done have left, those whose deadline comes before the next step leave with what they have,
and whoever waits takes a free slot; then all rows run as one batch (Yu et al., Orca, OSDI 2022; Yao et al., Flover,
arXiv:2305.13484). One thread does it for a model, so that the numbers of a request depend on nobody else's timing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from edgekit.errors import DeadlineError, EdgekitError, SessionError, UnreachableError
from edgekit.runtimes.server.joining import Joining
from edgekit.runtimes.server.ongoing import Ongoing, Outcome
from edgekit.runtimes.server.output_guard import GuardOptions, TokenBudget
from edgekit.runtimes.server.schedule import QueueFullError, QuotaError, Tenant
from edgekit.runtimes.server.sequences import Finish, Iterated
from edgekit.runtimes.server.slots import Slots

logger = logging.getLogger("edgekit")

LOOK_S = 0.01  # so often the line is looked through for those whose time is over
RECENT = 0.1  # the weight of the last step in the expected time of the next
Observe = Callable[[int, int, int, bool], None]


@dataclass(frozen=True)
class IterationOptions:
    """`slots` requests run together, `queue` may wait. `max_steps`: tokens of one answer at most;
    `tokens_per_minute`: of one tenant. `margin_s`: an answer that a deadline cuts short leaves so long before it, for
    its way back: a caller who has hung up has nothing of it."""

    slots: int = 16
    queue: int = 64
    max_steps: int = 1024
    tokens_per_minute: float = math.inf
    guard: GuardOptions = GuardOptions()
    margin_s: float = 0.003


class Iterations:
    """`submit` may be called from many threads. `observe` is told of each step: rows, start, end, failed."""

    def __init__(
        self,
        name: str,
        slots: Slots,
        options: IterationOptions = IterationOptions(),
        tenants: Iterable[Tenant] = (),
        observe: Observe | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        threaded: bool = True,
    ) -> None:
        """Without `threaded` the caller makes the `turn`s."""
        self.name, self.slots, self.options = name, slots, options
        self._observe, self._clock = observe, clock
        self._condition = threading.Condition()
        self._waiting: Joining[Ongoing] = Joining(tenants)
        self._active: list[Ongoing] = []
        self._budget = TokenBudget(options.tokens_per_minute)
        self._step_s = 0.0
        self._look_s = -math.inf
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"edgekit {name} steps", daemon=True)
        if threaded:
            self._thread.start()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        return not self._active and not self._waiting

    def submit(self, sequence: Iterated, deadline: float = math.inf, tenant: str = "") -> Ongoing:
        """`deadline` on the clock. Raises QueueFullError, QuotaError, UnreachableError."""
        ongoing = Ongoing(sequence, deadline, tenant)
        with self._condition:
            if self._closed:
                raise self._closing()
            if self._waiting.room(tenant, self.options.queue) + self.slots.free <= 0:
                whose = f" for the tenant {tenant!r}" if tenant else ""
                raise QueueFullError(
                    f"the queue of {self.name} is full{whose}: {len(self._waiting)} wait, allowed {self.options.queue}",
                    self._step_s * max(one.steps for one in self._active) if self._active else 0.0,
                    "give the node a larger --queue",
                )
            wait_s = self._budget.wait_s(tenant, self._clock()) if sequence.generates else 0.0
            if wait_s > 0:
                allowed = self.options.tokens_per_minute
                raise QuotaError(f"the tenant {tenant!r} has used its {allowed:g} tokens a minute", wait_s)
            self._waiting.push(tenant, ongoing)
            self._condition.notify()
        return ongoing

    def turn(self) -> bool:
        """One border and one step. False where there was nothing to run."""
        with self._condition:
            self._at_border()
            active = list(self._active)
        if not active:
            return False
        self._run(active)
        return True

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._active and not self._waiting:
                    if self._closed:
                        return
                    self._condition.wait()
            try:
                self.turn()
            except Exception as error:
                # Whatever it was: those who wait for it must not wait for ever.
                logger.exception("a step of %s failed", self.name)
                for ongoing in list(self._active):
                    self._fail(ongoing, error)

    def _at_border(self) -> None:
        now = self._clock()
        for ongoing in list(self._active):
            if ongoing.is_cancelled:
                self._leave(ongoing, "length", degraded=True)
            elif ongoing.deadline_s < now + self._step_s + (
                self.options.margin_s if ongoing.sequence.produced else 0.0
            ):
                self._leave(ongoing, "deadline", degraded=True)
        if now >= self._look_s:
            # A step may take microseconds, and the line be long.
            self._look_s = now + LOOK_S
            for ongoing in self._waiting.drop(lambda one: one.is_over(now)):
                self._too_late(ongoing)
        while self.slots.free and (joining := self._waiting.pop()) is not None:
            if joining.is_over(now):
                self._waiting.left(joining.tenant)
                self._too_late(joining)
                continue
            joining.slot, joining.joined_ns = self.slots.take(), time.perf_counter_ns()
            self._active.append(joining)

    def _too_late(self, ongoing: Ongoing) -> None:
        ongoing.end(None, DeadlineError(f"the deadline passed while the request waited for {self.name}"))

    def _run(self, active: list[Ongoing]) -> None:
        start, failed = time.perf_counter_ns(), True
        try:
            for row, ongoing in enumerate(active):
                ongoing.sequence.feed(self.slots.feed[row, ...])
            outputs = self.slots.step([one.slot for one in active])
            failed = False
        except Exception as error:
            if len(active) == 1:
                self._fail(active[0], error)
        finally:
            end = time.perf_counter_ns()
            if self._observe is not None:
                self._observe(len(active), start, end, failed)
        if failed:
            self._run_apart(active)
            return
        self._step_s += (RECENT if self._step_s else 1.0) * ((end - start) / 1e9 - self._step_s)
        for row, ongoing in enumerate(active):
            self._took(ongoing, outputs, row)

    def _run_apart(self, active: list[Ongoing]) -> None:
        """One request must not spoil the others: where a step fails for all, each takes it alone."""
        if len(active) == 1:
            return
        for ongoing in active:
            self._run([ongoing])

    def _took(self, ongoing: Ongoing, outputs: dict[str, np.ndarray], row: int) -> None:
        before = ongoing.sequence.produced
        try:
            finish = ongoing.sequence.take(outputs, row)
        except Exception as error:
            self._fail(ongoing, error)
            return
        ongoing.steps += 1
        came = ongoing.sequence.produced > before
        with self._condition:
            self._waiting.charge(ongoing.tenant)
            is_spent = False
            if came and ongoing.sequence.generates:
                now = self._clock()
                self._budget.charge(ongoing.tenant, now)
                is_spent = self._budget.wait_s(ongoing.tenant, now) > 0
            if finish is not None:
                self._leave(ongoing, finish)
            elif is_spent:
                self._leave(ongoing, "length", degraded=True)
            elif came:
                ongoing.tell()

    def _leave(self, ongoing: Ongoing, finish: Finish, *, degraded: bool = False) -> None:
        """Holds the lock. A deadline that let nothing come is an error."""
        self._free(ongoing)
        if finish == "deadline" and not ongoing.sequence.produced:
            ongoing.end(None, DeadlineError(f"{self.name} had answered nothing by the deadline"))
            return
        queue_ns, compute_ns = ongoing.joined_ns - ongoing.queued_ns, time.perf_counter_ns() - ongoing.joined_ns
        tensors = ongoing.sequence.answer()
        ongoing.end(Outcome(tensors, finish, degraded, ongoing.steps, queue_ns, compute_ns))

    def _fail(self, ongoing: Ongoing, error: Exception) -> None:
        with self._condition:
            self._free(ongoing)
        known = error if isinstance(error, EdgekitError) else SessionError(f"{self.name} failed: {error}")
        ongoing.end(None, known)

    def _free(self, ongoing: Ongoing) -> None:
        self._active.remove(ongoing)
        self.slots.release(ongoing.slot)
        self._waiting.left(ongoing.tenant)

    def refuse_waiting(self) -> None:
        """Those that have not begun; like any that come from now on. Those that run leave with what they have, at the
        next border."""
        with self._condition:
            self._closed = True
            dropped = self._waiting.drop(lambda one: True)
            for ongoing in self._active:
                ongoing.cancel()
            self._condition.notify()
        for ongoing in dropped:
            ongoing.end(None, self._closing())

    def _closing(self) -> UnreachableError:
        return UnreachableError(f"the model {self.name} is closing", hint="ask another node")

    def close(self) -> None:
        """Refuses further requests, finishes those that are here, and ends the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

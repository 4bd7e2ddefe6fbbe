"""What devices say, written for many of them at once: one thread, one transaction for all that came in the meantime.

A call is answered after the commit that holds it: what was acknowledged is stored. Behind a full queue calls are
refused at once, and the agents keep what they have. Source of the technique: group commit (DeWitt et al. 1984,
Implementation Techniques for Main Memory Database Systems, SIGMOD).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from edgekit.errors import EdgekitError, OverloadedError, StoreError, UsageError
from edgekit.fleet.protocol.agents import Facts, Sync
from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.service.directory import Directory
from edgekit.fleet.service.spans import Spans
from edgekit.fleet.service.writing import Saying, write_all
from edgekit.fleet.store.database import Database

logger = logging.getLogger("edgekit")

GATHER_S = 0.01  # a batch waits so long for others, which costs a call as much and saves a commit each
MAX_WAITING = 20_000  # calls
MAX_WINDOWS = 50_000  # in waiting calls; some 100 MB
BATCH = 2_000  # calls of one transaction
TRIES = 4  # of a batch that another worker's transaction stood against
STOP_S = 30.0
SPANS_EVERY_S = 5.0


@dataclass(slots=True)
class Call:
    device: str
    sync: Sync
    at: float
    fresh: tuple[Window, ...]
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class IntakeCounts:
    """Since the start; `waiting` now."""

    calls: int
    windows: int
    refused: int
    failed: int
    commits: int
    waiting: int


class Intake:
    """`close` writes what waits, and ends the thread, which starts with the first call."""

    def __init__(
        self, database: Database, directory: Directory, now: Callable[[], float], gather_s: float = GATHER_S
    ) -> None:
        self._database, self._directory, self._now, self._gather_s = database, directory, now, gather_s
        self._queue: deque[Call] = deque()
        self._windows = 0
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._spans, self._spans_at = Spans(), time.monotonic()
        self._calls = self._stored = self._refused = self._failed = self._commits = 0

    def put(self, device: str, sync: Sync) -> Future[None]:
        """The future ends with the commit, or raises StoreError, UsageError. Raises AuthenticationError for a device
        that is not there, OverloadedError where too many wait, StoreError once it is closed."""
        taken, now = self._directory.get(device).taken, self._now()
        fresh = tuple(_not_ahead(window, now) for window in sync.windows if window.sequence > taken)
        call = Call(device, sync, now, fresh)
        with self._wake:
            if self._closed:
                raise StoreError("the service is stopping", hint="try again: what you hold is not lost")
            if len(self._queue) >= MAX_WAITING or self._windows + len(fresh) > MAX_WINDOWS:
                self._refused += 1
                raise OverloadedError(
                    f"{len(self._queue)} calls with {self._windows} windows wait to be stored", hint="try again later"
                )
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edgekit-intake", daemon=True)
                self._thread.start()
            self._queue.append(call)
            self._windows += len(fresh)
            self._wake.notify()
        return call.done

    @property
    def counts(self) -> IntakeCounts:
        return IntakeCounts(self._calls, self._stored, self._refused, self._failed, self._commits, len(self._queue))

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
            thread = self._thread
        if thread is not None:
            thread.join(STOP_S)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._closed and not self._spans_are_due():
                    self._wake.wait(SPANS_EVERY_S if self._spans.grown else None)
                closing, is_last = self._closed, self._closed and not self._queue
            if self._queue and not closing and len(self._queue) < BATCH:
                time.sleep(self._gather_s)
            with self._wake:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                self._windows -= sum(len(call.fresh) for call in batch)
            try:
                self._store(batch)
            except BaseException as error:
                logger.exception("the intake failed")
                _end(batch, StoreError(f"what came could not be stored: {error}", hint="try again"))
            if is_last:
                return

    def _store(self, batch: list[Call]) -> None:
        try:
            self._commit(batch)
        except UsageError as error:
            if len(batch) > 1:  # one of them holds what the database does not take: the others are not to suffer
                for call in batch:
                    self._store([call])
                return
            self._failed += 1
            logger.warning("%s sent what cannot be stored: %s", batch[0].device, error.message)
            _end(batch, error)
        except EdgekitError as error:
            self._failed += len(batch)
            _end(batch, error)
        else:
            self._calls += len(batch)
            self._stored += sum(len(call.fresh) for call in batch)
            self._commits += 1
            _end(batch, None)

    def _commit(self, batch: Sequence[Call]) -> None:
        said, with_spans = gather(batch), self._closed or self._spans_are_due()
        if with_spans:
            self._spans_at = time.monotonic()
        for left in reversed(range(TRIES)):
            try:
                with self._database.write(shared=True) as session:
                    taken, tick = write_all(session.connection(), said)
                    if with_spans:
                        self._spans.write(session.connection())
                break
            except StoreError as error:
                if not left or not error.again:
                    raise
        if with_spans:
            self._spans.written()
        self._spans.add((self._directory.groups_of(one.device), _new(one, taken)) for one in said if one.windows)
        for one in said:
            _, last = taken.get(one.device, (-1, one.taken))
            self._directory.stored(one.device, last, _boot(one.facts))
        if tick > self._directory.tick:
            self._directory.refresh()

    def _spans_are_due(self) -> bool:
        return self._spans.grown > 0 and time.monotonic() - self._spans_at >= SPANS_EVERY_S


def gather(batch: Sequence[Call]) -> list[Saying]:
    """One saying for each device, the last word of it; by id, so that two workers lock rows in the same order."""
    held: dict[str, Saying] = {}
    for call in batch:
        before = held.get(call.device)
        windows = {one.sequence: one for one in (*(before.windows if before else ()), *call.fresh)}
        facts = call.sync.facts or (before.facts if before else None)
        in_order = tuple(windows[sequence] for sequence in sorted(windows))
        held[call.device] = Saying(call.device, call.at, call.sync.slot, in_order, facts)
    return [held[device] for device in sorted(held)]


def _not_ahead(window: Window, now: float) -> Window:
    """A device whose clock is ahead would keep its windows for ever, and count old ones to a step of a rollout."""
    return window if window.started_at <= now else window.model_copy(update={"started_at": now})


def _new(one: Saying, taken: Mapping[str, tuple[int, int]]) -> Sequence[Window]:
    """Without what another worker has stored already, and counted: an answer that was lost makes a device send again,
    and not always to the same one."""
    before, _ = taken.get(one.device, (-1, 0))
    return one.windows if one.windows[0].sequence > before else [w for w in one.windows if w.sequence > before]


def _boot(facts: Facts | None) -> str:
    return "" if facts is None else facts.boot


def _end(batch: Sequence[Call], error: Exception | None) -> None:
    for call in batch:
        if call.done.done():
            continue
        if error is None:
            call.done.set_result(None)
        else:
            call.done.set_exception(error)

"""The loop of an agent: say what is, hear what is wanted, make it so; without the fleet, go on as before."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from edgekit.errors import EdgekitError, UnreachableError
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.orders import write_orders
from edgekit.fleet.agent.reached import note_reached
from edgekit.fleet.agent.update import Updater
from edgekit.fleet.client import AgentClient
from edgekit.fleet.protocol.agents import MAX_WAIT_S, Desired, Facts, Slot, Sync
from edgekit.fleet.protocol.windows import MAX_WINDOWS, Window

logger = logging.getLogger("edgekit")

FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 300.0
LEAST_PAUSE_S = 0.5  # between two syncs, whatever the fleet answers
CLOCK_OFF_S = 30.0  # by which a clock is another one than the fleet's; less is the way there and back
JITTER = 0.2  # of an interval, so that a fleet that was started at once does not ask at once


class Seen(Protocol):
    """Windows that the fleet does not have yet, oldest first."""

    def oldest(self, count: int) -> Sequence[Window]: ...

    def taken(self, sequence: int) -> None:
        """Up to this one the fleet has them, and they need not be kept."""


class Daemon:
    """`connect`: the fleet, as this device; asked again after an error that is not the network's. `wait_s`: how long a
    sync waits for new orders. `wait`: stands still for so many seconds, or until `stop`. `choose`: between two
    numbers, for jitter. `stop` ends it from any thread."""

    def __init__(
        self,
        home: Home,
        connect: Callable[[], AgentClient],
        updater: Updater,
        facts: Facts,
        seen: Seen | None = None,
        wait_s: float = 25.0,
        choose: Callable[[float, float], float] = random.uniform,
        wait: Callable[[float], object] | None = None,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._home, self._connect, self._updater, self._facts = home, connect, updater, facts
        self._seen, self._wait_s, self._choose, self._now, self._wall = seen, wait_s, choose, now, wall
        self._behind_s = 0.0
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._client: AgentClient | None = None
        self._told_facts = False
        self._trouble: str | None = None  # that was written down last
        self._known = 0
        self._retry_s = FIRST_RETRY_S
        updater.report = self.tell

    def run(self) -> None:
        """Until `stop`."""
        self._updater.start()
        wait_s = 0.0
        try:
            while not self._stopped.is_set():
                started, known = self._now(), self._known
                try:
                    desired = self.sync(wait_s)
                    hurry = self._follow(desired) or self._has_more()
                except EdgekitError as error:
                    self._missed(error)
                    wait_s = 0.0
                    continue
                self._retry_s = FIRST_RETRY_S
                took_s = self._now() - started
                was_held = desired.generation != known or took_s >= 0.5 * wait_s
                pause_s = 0.0 if hurry else self._pause_s(desired.interval_s, was_held) - took_s
                wait_s = 0.0 if hurry else min(self._wait_s, desired.interval_s)
                self._wait(max(LEAST_PAUSE_S, pause_s))
        finally:
            self._disconnect()

    def _pause_s(self, interval_s: float, was_held: bool) -> float:
        """From one sync to the next. Questions that wait at the fleet follow one another without a gap, unless the
        fleet wants to be asked rarely, or answers what should have waited at once."""
        if self._wait_s and was_held and interval_s <= MAX_WAIT_S:
            return 0.0
        return interval_s * self._choose(1 - JITTER, 1 + JITTER)

    def sync(self, wait_s: float = 0.0) -> Desired:
        """Once. Raises like `connect` and `AgentClient.sync`."""
        if self._client is None:
            self._client = self._connect()
        desired = self._client.sync(
            Sync(
                known=self._known,
                slot=self._updater.slot,
                windows=self._windows(),
                facts=None if self._told_facts else self._facts,
                boot=self._facts.boot,
                wait_s=wait_s,
            )
        )
        self._told_facts = True
        self._behind_s = 0.0 if desired.now is None else desired.now - self._wall()
        if self._seen is not None:
            self._seen.taken(desired.taken)
        self._updater.heard()
        self._note_reached("")
        return desired

    def _windows(self) -> tuple[Window, ...]:
        """By the fleet's clock, where this device's is another one: guards look at what was seen since a step began."""
        found = tuple(self._seen.oldest(MAX_WINDOWS)) if self._seen is not None else ()
        if abs(self._behind_s) <= CLOCK_OFF_S:
            return found
        return tuple(one.model_copy(update={"started_at": max(0.0, one.started_at + self._behind_s)}) for one in found)

    def tell(self, slot: Slot) -> None:
        """A phase in the middle of an update; that it is not heard does not matter."""
        if self._client is None:
            return
        try:
            self._client.sync(Sync(known=self._known, slot=slot, boot=self._facts.boot))
        except EdgekitError as error:
            logger.info("not told: %s", error.message)

    def stop(self) -> None:
        self._stopped.set()

    def _follow(self, desired: Desired) -> bool:
        """Whether something changed here, which the fleet should hear of at once."""
        assert self._client is not None
        before = self._updater.slot
        write_orders(self._home, desired)
        wanted = None if desired.bundle is None else desired.bundle.digest
        self._updater.follow(self._client, wanted, [one.digest for one in desired.kept])
        self._known = desired.generation
        return self._updater.slot != before

    def _missed(self, error: EdgekitError) -> None:
        """Waits longer each time, as long as the fleet asks for, and never in step with others."""
        asked_s = getattr(error, "retry_after_s", None)
        pause_s = self._choose(0.5 * self._retry_s, self._retry_s)
        if asked_s is not None:
            pause_s = max(pause_s, min(LONGEST_RETRY_S, asked_s) * self._choose(1, 1 + JITTER))
        fix = f"; {error.hint}" if error.hint and not isinstance(error, UnreachableError) else ""
        logger.warning("%s (%s%s); again in %.0f s", error.message, type(error).__name__, fix, pause_s)
        self._note_reached(error.message)
        self._retry_s = min(LONGEST_RETRY_S, 2 * self._retry_s)
        self._known = 0  # the next answer is to come at once
        if isinstance(error, UnreachableError):
            self._updater.unheard()
        else:
            self._disconnect()  # a certificate that was renewed counts with the next connection
        self._wait(pause_s)

    def _note_reached(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            note_reached(self._home, self._wall(), trouble)

    def _has_more(self) -> bool:
        return self._seen is not None and len(self._seen.oldest(MAX_WINDOWS)) == MAX_WINDOWS

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

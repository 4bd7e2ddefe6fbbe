"""The loop of an agent: say what is, hear what is wanted, make it so; without the fleet, go on as before."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from edgekit.errors import EdgekitError, RemoteError
from edgekit.fleet.agent.update import Updater
from edgekit.fleet.client import AgentClient
from edgekit.fleet.protocol.agents import Desired, Facts, Slot, Sync

logger = logging.getLogger("edgekit")

FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 300.0
JITTER = 0.2  # of an interval, so that a fleet that was started at once does not ask at once


class Daemon:
    """`wait_s`: how long a sync waits for new orders. `stop` ends it from any thread."""

    def __init__(
        self,
        client: AgentClient,
        updater: Updater,
        facts: Facts,
        wait_s: float = 25.0,
        choose: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._client, self._updater, self._facts, self._wait_s, self._choose = client, updater, facts, wait_s, choose
        self._stopped = threading.Event()
        self._told_facts = False
        self._known = 0
        self._wanted: Desired | None = None

    def run(self) -> None:
        """Until `stop`."""
        self._updater.start()
        retry_s, wait_s = FIRST_RETRY_S, 0.0
        while not self._stopped.is_set():
            started = time.monotonic()
            try:
                desired = self.sync(wait_s)
                followed = self._follow(desired)
            except EdgekitError as error:
                logger.warning("the fleet is not heard: %s; again in %.0f s", error.message, retry_s)
                self._stopped.wait(self._choose(0.5 * retry_s, retry_s))
                retry_s = min(LONGEST_RETRY_S, 2 * retry_s)
                continue
            retry_s = FIRST_RETRY_S
            wait_s = 0.0 if followed else self._wait_s
            if not followed and self._wait_s == 0:
                interval_s = desired.interval_s * self._choose(1 - JITTER, 1 + JITTER)
                self._stopped.wait(max(0.0, interval_s - (time.monotonic() - started)))

    def sync(self, wait_s: float = 0.0) -> Desired:
        """Once. Raises like `AgentClient.sync`."""
        desired = self._client.sync(
            Sync(
                known=self._known,
                slot=self._updater.slot,
                facts=None if self._told_facts else self._facts,
                wait_s=wait_s,
            )
        )
        self._told_facts = True
        return desired

    def _follow(self, desired: Desired) -> bool:
        """Whether something changed here, which the fleet should hear of at once."""
        before = self._updater.slot
        self._known = desired.generation
        wanted = None if desired.bundle is None else desired.bundle.digest
        self._updater.follow(self._client, wanted)
        return self._updater.slot != before

    def tell(self, slot: Slot) -> None:
        """A phase in the middle of an update; that it is not heard does not matter."""
        try:
            self._client.sync(Sync(known=self._known, slot=slot))
        except RemoteError as error:
            logger.info("not told: %s", error.message)

    def stop(self) -> None:
        self._stopped.set()

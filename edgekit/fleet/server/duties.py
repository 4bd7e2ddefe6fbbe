"""What a worker does without being asked: hears of what other workers changed, and leads where no other one does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from anyio import CapacityLimiter, to_thread

from edgekit.errors import EdgekitError
from edgekit.fleet.server.metrics import Metrics
from edgekit.fleet.server.waiting import Waiters
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.retention import MOST

logger = logging.getLogger("edgekit")

LISTEN_EVERY_S = 0.25
ENTER_EVERY_S = 2.0
PRUNE_EVERY_S = 600.0


@contextlib.asynccontextmanager
async def on_duty(
    service: FleetService,
    waiters: Waiters,
    metrics: Metrics,
    *,
    advance_every_s: float,
    listen_every_s: float = LISTEN_EVERY_S,
) -> AsyncIterator[None]:
    """Until it is left; then the lease is free for the next worker."""
    leader = _Leader(service)

    def listen() -> None:
        service.devices.directory.refresh()
        waiters.wake(service.devices.directory.news())

    tasks = [
        asyncio.create_task(_for_ever("changes of other workers are not heard", listen, listen_every_s)),
        asyncio.create_task(_for_ever("counts are not told", metrics.enter, ENTER_EVERY_S)),
        asyncio.create_task(_for_ever("rollouts stand still", leader.lead, advance_every_s)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await to_thread.run_sync(service.lease.leave)


class _Leader:
    def __init__(self, service: FleetService) -> None:
        self._service = service
        self._leads = False
        self._prune_at = 0.0

    def lead(self) -> None:
        """One step of everything, where this worker holds the lease."""
        leads = self._service.lease.take()
        if leads != self._leads:
            logger.info("this worker %s", "leads now" if leads else "leads no more")
            self._leads = leads
        if not leads:
            return
        self._service.trust.renew()
        self._service.rollouts.advance()
        self._service.insights.step()
        self._service.plans.step()
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + PRUNE_EVERY_S
            gone = {what: count for what, count in self._service.retention.prune().items() if count}
            if max(gone.values(), default=0) >= MOST:
                self._prune_at = 0.0
            if gone:
                logger.info("old rows removed: %s", ", ".join(f"{count} of {what}" for what, count in gone.items()))


async def _for_ever(trouble: str, work: Callable[[], None], every_s: float) -> None:
    """Trouble is told once, and its end."""
    limiter = CapacityLimiter(1)  # not of the threads that answer requests
    said = ""
    while True:
        try:
            await to_thread.run_sync(work, limiter=limiter)
        except EdgekitError as error:
            if error.message != said:
                logger.warning("%s: %s", trouble, error.message)
            said = error.message
        except Exception as error:
            if (str(error) or type(error).__name__) != said:
                logger.exception("%s", trouble)
            said = str(error) or type(error).__name__
        else:
            if said:
                logger.warning("it works again, after: %s", said)
            said = ""
        await asyncio.sleep(every_s)

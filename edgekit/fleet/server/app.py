"""The application: routes, error answers, headers, and the loop that carries rollouts on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from anyio import to_thread
from fastapi import FastAPI

from edgekit.errors import EdgekitError
from edgekit.fleet.server import agents, bundles, devices, pages, people, problems, rollouts, telemetry
from edgekit.fleet.server.metrics import Metrics
from edgekit.fleet.server.waiting import Waiters
from edgekit.fleet.service import FleetService

logger = logging.getLogger("edgekit")

ADVANCE_EVERY_S = 1.0


def create_app(service: FleetService, *, advance_every_s: float = ADVANCE_EVERY_S) -> FastAPI:
    """`service` stays the caller's to close."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.core.changed.append(app.state.waiters.wake)
        task = asyncio.create_task(_advance_for_ever(service, advance_every_s))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            service.core.changed.remove(app.state.waiters.wake)

    app = FastAPI(title="edgekit fleet", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service, app.state.waiters = service, Waiters()
    app.state.metrics = Metrics(service, app.state.waiters)
    problems.install(app)
    for module in (agents, bundles, devices, rollouts, people, telemetry):
        app.include_router(module.router)
    pages.install(app)
    return app


async def _advance_for_ever(service: FleetService, every_s: float) -> None:
    while True:
        try:
            await to_thread.run_sync(service.rollouts.advance)
        except EdgekitError as error:
            logger.warning("rollouts stand still: %s", error.message)
        except Exception:
            logger.exception("rollouts stand still")
        await asyncio.sleep(every_s)

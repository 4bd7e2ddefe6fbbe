"""The application: routes, error answers, headers, and what it does without being asked."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from edgekit.fleet.server import (
    agents,
    bundles,
    devices,
    insights,
    pages,
    people,
    plans,
    problems,
    rollouts,
    telemetry,
    tuf,
)
from edgekit.fleet.server.described import PROBLEMS, describe
from edgekit.fleet.server.duties import on_duty
from edgekit.fleet.server.limits import Limits
from edgekit.fleet.server.metrics import Metrics
from edgekit.fleet.server.waiting import Waiters
from edgekit.fleet.service import FleetService

ADVANCE_EVERY_S = 1.0


def create_app(service: FleetService, *, advance_every_s: float = ADVANCE_EVERY_S) -> FastAPI:
    """`service` stays the caller's to close."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.core.changed.append(app.state.waiters.wake)
        try:
            async with on_duty(service, app.state.waiters, app.state.metrics, advance_every_s=advance_every_s):
                yield
        finally:
            service.core.changed.remove(app.state.waiters.wake)

    app = FastAPI(title="edgekit fleet", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service, app.state.waiters = service, Waiters()
    app.state.metrics = Metrics(service, app.state.waiters)
    problems.install(app)
    for module in (agents, bundles, devices, plans, rollouts, insights, people, telemetry, tuf):
        app.include_router(module.router, responses=PROBLEMS)
    pages.install(app)
    describe(app)
    app.add_middleware(Limits, is_streamed=bundles.is_file)
    return app

"""The page: one file for each kind of thing, as the API has it; `answering` says how they answer.

A page's address answers a browser with HTML, and its script, which asks for text/event-stream, with what changes.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

from edgekit.fleet.server.live import Live
from edgekit.fleet.server.pages import bundles, devices, groups, overview, people, rollouts, signing

router = APIRouter(include_in_schema=False)
for module in (signing, overview, groups, devices, rollouts, bundles, people):
    router.include_router(module.router)


def install(app: FastAPI) -> None:
    """After the API's routes. Whoever stops the application calls `app.state.live.stop` first."""
    app.state.live = Live()
    app.include_router(router)

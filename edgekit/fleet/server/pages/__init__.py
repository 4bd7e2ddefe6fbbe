"""The page: one file for each kind of thing, as the API has it; `answering` says how they answer.

A page's address answers a browser with HTML, and its script, which asks for text/event-stream, with what changes.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from edgekit.errors import AbsentError
from edgekit.fleet.protocol.wire import API
from edgekit.fleet.server.live import Live
from edgekit.fleet.server.pages import bundles, devices, groups, overview, people, rollouts, signing
from edgekit.fleet.server.pages.answering import shield, told
from edgekit.fleet.server.problems import tell_http

router = APIRouter(include_in_schema=False)
for module in (signing, overview, groups, devices, rollouts, bundles, people):
    router.include_router(module.router)


def install(app: FastAPI) -> None:
    """After the API's routes. Whoever stops the application calls `app.state.live.stop` first."""
    app.state.live = Live()
    app.include_router(router)
    app.add_exception_handler(HTTPException, _tell_http)


async def _tell_http(request: Request, error: Exception) -> Response:
    """A path that is none, on a page for who looks at it with a browser."""
    assert isinstance(error, HTTPException)
    reads = "text/html" in request.headers.get("accept", "")
    if error.status_code != 404 or request.url.path.startswith(f"{API}/") or not reads:
        return await tell_http(request, error)
    return shield(told(AbsentError("there is no such page", hint="the overview leads everywhere")))

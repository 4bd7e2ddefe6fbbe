"""Bundles: all of them, one of them with its files and its report, letting go of one."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from anyio import to_thread
from fastapi import Path, Query
from starlette.responses import HTMLResponse, Response

from edgekit.fleet.server.bundles import SEALED
from edgekit.fleet.server.pages.answering import Context, Page, page_router
from edgekit.fleet.server.sessions import Form
from edgekit.fleet.service import FleetService

router = page_router()

ROWS = 50

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
# Whatever a report holds runs nothing, reaches nothing, and is seen within our own page alone.
FRAMED = {
    "Content-Security-Policy": SEALED["Content-Security-Policy"] + "; frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
}


def _bundle(service: FleetService, digest: str) -> Context:
    view = service.bundles.get(digest)
    glance = service.glances.now()
    where = Counter({one.view.name: sum(cell.running == digest for cell in one.cells) for one in glance.groups})
    waiting = sum(cell.wanted == digest != cell.running for cell in glance.cells)
    return {"bundle": view, "where": [(name, n) for name, n in where.most_common() if n], "waiting": waiting}


@router.get("/bundles")
async def bundles(page: Page, after: Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$")] = None) -> Response:
    return await page.show("bundles.html", lambda: {"bundles": page.service.bundles.list(after, ROWS), "after": after})


@router.get("/bundles/{digest}")
async def bundle(page: Page, digest: Digest) -> Response:
    return await page.show("bundle.html", lambda: _bundle(page.service, digest))


@router.get("/bundles/{digest}/report")
async def report(page: Page, digest: Digest) -> Response:
    return HTMLResponse(await to_thread.run_sync(page.service.bundles.report, digest), headers=FRAMED)


@router.post("/bundles/{digest}/remove")
async def remove(page: Page, digest: Digest, fields: Form) -> Response:
    return await page.do(lambda: page.service.bundles.remove(page.actor, digest), "/bundles")

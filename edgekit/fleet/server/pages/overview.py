"""The whole fleet at a glance, what was found out about its devices, and the audit log."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query
from starlette.responses import Response

from edgekit.fleet.protocol.insights import FindingKind
from edgekit.fleet.server.pages.answering import Context, Page, page_router
from edgekit.fleet.service import FleetService

router = page_router()

SHOWN_GROUPS = 60
SHOWN_GOING = 8
EVENTS = 50
FINDINGS = 30


def glance_of(service: FleetService) -> Context:
    glance = service.glances.now()
    rollouts = service.rollouts.list(limit=30).items
    going = [rollout for rollout in rollouts if rollout.ended_at is None]
    ended = [rollout for rollout in rollouts if rollout.ended_at is not None]
    groups = sorted(glance.groups, key=lambda group: (-len(group.cells), group.view.name))[:SHOWN_GROUPS]
    return {
        "glance": glance,
        "groups": groups,
        "going": [(rollout, service.progress.of(rollout.id)) for rollout in going[:SHOWN_GOING]],
        "more": len(going[SHOWN_GOING:]),
        "ended": ended,
        "found": service.insights.count(),
    }


@router.get("/")
async def overview(page: Page) -> Response:
    return await page.show("overview.html", lambda: glance_of(page.service))


@router.get("/findings")
async def findings(
    page: Page,
    kind: FindingKind | Literal[""] = "",
    after: Annotated[str, Query(pattern=r"^\d{0,9}$")] = "",
) -> Response:
    def read() -> Context:
        found = page.service.insights.list(kind or None, "", after or None, FINDINGS)
        return {"found": found, "kind": kind, "after": after}

    return await page.show("findings.html", read)


@router.get("/audit")
async def audit(
    page: Page,
    after: Annotated[str | None, Query(pattern=r"^\d{1,18}$")] = None,
    subject: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    return await page.show(
        "audit.html",
        lambda: {"events": page.service.core.events(after, EVENTS, subject), "subject": subject, "after": after},
    )

"""What the fleet found out about its devices: /v1/insights."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from edgekit.fleet.protocol.insights import Finding, FindingKind
from edgekit.fleet.protocol.wire import API, Page
from edgekit.fleet.server.asking import Limit, Person, Service

router = APIRouter(prefix=API, tags=["insights"])


@router.get("/insights")
def list_insights(
    person: Person,
    service: Service,
    kind: FindingKind | None = None,
    device: Annotated[str, Query(max_length=63, description="The id or the name")] = "",
    after: Annotated[str | None, Query(pattern=r"^\d{1,9}$", description="`next` of the page before")] = None,
    limit: Limit = 100,
) -> Page[Finding]:
    """Devices unlike their peers, or unlike their own past with the same bundle; the worst first."""
    return service.insights.list(kind, device, after, limit)

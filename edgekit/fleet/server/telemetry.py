"""What devices saw, for people and for Prometheus: /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from edgekit.fleet.server.asking import Person
from edgekit.fleet.server.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["telemetry"])


@router.get("/metrics", response_class=Response)
def metrics(person: Person, request: Request) -> Response:
    """For Prometheus, with a viewer's token; of this worker, and of the whole fleet as the database counts it."""
    held: Metrics = request.app.state.metrics
    return Response(held.render(), headers={"Content-Type": CONTENT_TYPE})

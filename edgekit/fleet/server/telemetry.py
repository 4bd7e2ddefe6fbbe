"""What devices saw, for people and for Prometheus: /v1/telemetry, /metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from edgekit.errors import UsageError
from edgekit.fleet.protocol.telemetry import TelemetryView
from edgekit.fleet.protocol.wire import API
from edgekit.fleet.server.asking import Person, Service
from edgekit.fleet.server.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["telemetry"])

HOUR_S = 3600.0

Moment = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False, description="Seconds since 1970, UTC")]


@router.get("/metrics", response_class=Response)
def metrics(person: Person, request: Request) -> Response:
    """For Prometheus, with a viewer's token: what the workers did, and the fleet as the database counts it."""
    held: Metrics = request.app.state.metrics
    return Response(held.render(), headers={"Content-Type": CONTENT_TYPE})


@router.get(f"{API}/telemetry")
def over_time(
    person: Person,
    service: Service,
    device: Annotated[str, Query(max_length=63, description="The id or the name")] = "",
    group: Annotated[str, Query(max_length=63)] = "",
    since: Moment = None,
    until: Moment = None,
    step_s: Annotated[float, Query(ge=10, le=30 * 86_400, allow_inf_nan=False)] = HOUR_S,
) -> TelemetryView:
    """Of a device, of a group, or of everyone; the last day without `since`."""
    if device and group:
        raise UsageError("a device and a group", hint="ask for one of them")
    end = service.core.now() if until is None else until
    start = end - 24 * HOUR_S if since is None else since
    if device:
        return service.telemetry.of_device(device, start, end, step_s)
    return service.telemetry.of_group(group, start, end, step_s)


@router.get(f"{API}/telemetry/windows", response_class=StreamingResponse)
def windows(
    person: Person,
    service: Service,
    selector: Annotated[str, Query(max_length=500)] = "",
    since: Moment = None,
    until: Moment = None,
) -> Response:
    """Every window of the devices that a selector holds, as CSV with a header; the last day without `since`."""
    end = service.core.now() if until is None else until
    lines = service.telemetry.export(selector, end - 24 * HOUR_S if since is None else since, end)
    headers = {"Content-Disposition": 'attachment; filename="windows.csv"'}
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)

"""What agents ask: /v1/enroll, /v1/agent/..."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from edgekit.fleet.protocol.agents import Desired, Enrolled, Enrolment, Renewal, Sync
from edgekit.fleet.protocol.wire import API
from edgekit.fleet.server.asking import DeviceId, Service, bearer, serial_of
from edgekit.fleet.server.metrics import Metrics
from edgekit.fleet.server.waiting import Waiters
from edgekit.fleet.service import FleetService

router = APIRouter(prefix=API, tags=["agents"])

# MAX_WINDOWS windows with full histograms have some 600 kB.
MAX_BODY_BYTES = 2 << 20
BODY_S = 20.0


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema without references, which OpenAPI would look for elsewhere."""
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items() if key != "$defs"}


_SCHEMA = Sync.model_json_schema()
# Said by hand, because the body is read by hand; the schema stands whole in its place.
_SYNC_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(_SCHEMA, _SCHEMA["$defs"])}}}
}


@router.post("/enroll")
def enroll(enrolment: Enrolment, service: Service) -> Enrolled:
    """A token and a certificate request become a device."""
    return service.devices.enroll(enrolment)


@router.post("/agent/renew")
def renew(renewal: Renewal, device: DeviceId, service: Service, request: Request) -> Enrolled:
    """A new certificate; the one before counts no more."""
    serial = serial_of(request) or ""
    return service.devices.renew(device, renewal, "" if serial else bearer(request), serial)


@router.post(
    "/agent/sync",
    response_model=Desired,
    openapi_extra=_SYNC_BODY,
    responses={413: {"description": "More than 2 MiB"}, 422: {"description": "Not a Sync"}},
)
async def sync(request: Request, device: DeviceId, service: Service) -> Response:
    """Takes what the device did and saw, and says what it is to do; waits up to `wait_s` for something new."""
    return await answer_sync(request, device, service)


async def answer_sync(request: Request, device: str, service: FleetService) -> Response:
    """The body goes through one parser, once, on the event loop: threads and objects of the mapper would cost more than
    all the rest. Raises EdgekitError, RequestValidationError, HTTPException."""
    metrics: Metrics = request.app.state.metrics
    started = time.perf_counter()
    try:
        body = _read(await asyncio.wait_for(_body(request), BODY_S))
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the body took more than {BODY_S:g} s") from None
    waiters: Waiters = request.app.state.waiters
    devices = service.devices
    future = waiters.expect(device)
    try:
        if not devices.is_newest(device, body):
            await to_thread.run_sync(devices.need_newest, device, body)
        await asyncio.wrap_future(devices.intake.put(device, body))
        desired = devices.desired(device)
        metrics.synced(time.perf_counter() - started, len(body.windows))
        is_news = desired.generation != body.known or future.done()
        if body.wait_s and not is_news and await waiters.wait(device, future, body.wait_s):
            desired = devices.desired(device)
    finally:
        waiters.forget(device, future)
    return Response(desired.model_dump_json(), media_type="application/json")


async def _body(request: Request) -> bytes:
    """Raises HTTPException for one that is too large, before it is read."""
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > MAX_BODY_BYTES:
        raise HTTPException(413, f"the body has {told} bytes, allowed {MAX_BODY_BYTES}")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body has more than {MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _read(body: bytes) -> Sync:
    """Raises RequestValidationError, as FastAPI does for other bodies."""
    try:
        return Sync.model_validate_json(body)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(found) from error

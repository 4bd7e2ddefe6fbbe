"""Bundles and their files: /v1/uploads, /v1/blobs, /v1/bundles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

import anyio.from_thread
from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import FileResponse, HTMLResponse, Response, StreamingResponse

from edgekit.errors import AbsentError, AuthenticationError, UsageError
from edgekit.fleet.protocol.bundles import BundleView, Offer, Received, Wanted
from edgekit.fleet.protocol.wire import API, Page
from edgekit.fleet.registry.intake import MAX_BUNDLE_BYTES
from edgekit.fleet.server.asking import After, Limit, Person, Service, bearer, serial_of
from edgekit.fleet.service import FleetService
from edgekit.fleet.trust.tokens import PREFIXES

router = APIRouter(prefix=API, tags=["bundles"])

OCTETS = "application/octet-stream"
_RANGE = re.compile(r"bytes=(?P<start>\d{1,18})-(?P<last>\d{0,18})")

Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Reference = Annotated[str, Path(max_length=300)]
# A report is a page of its own with inline style and script; nothing in it may reach anything.
SEALED = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"}


def is_file(method: str, path: str) -> bool:
    """Whether the body is streamed: `receive`."""
    return method == "PUT" and path.startswith(f"{API}/blobs/")


@router.post("/uploads")
def offer(body: Offer, person: Person, service: Service) -> Wanted:
    """Which files of a bundle are not here yet."""
    return service.bundles.offer(person, body)


@router.put("/blobs/{sha256}")
async def receive(
    sha256: Sha256,
    at: Annotated[int, Query(ge=0)],
    size: Annotated[int, Query(ge=0, le=MAX_BUNDLE_BYTES)],
    person: Person,
    service: Service,
    request: Request,
) -> Received:
    """The bytes of a file from `at` on; what has come is kept when the connection breaks."""
    stream = request.stream().__aiter__()

    def chunks() -> Iterator[bytes]:
        while True:
            try:
                chunk = anyio.from_thread.run(stream.__anext__)
            except StopAsyncIteration:
                return
            yield chunk

    return await to_thread.run_sync(lambda: service.bundles.receive(person, sha256, at, size, chunks()))


@router.get("/blobs/{sha256}", response_class=FileResponse)
def read_blob(sha256: Sha256, request: Request, service: Service) -> Response:
    """A file, or ranges of it; for people and for devices."""
    somebody(request, service)
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    path = service.core.blobs.local(sha256)
    if path is not None:
        return FileResponse(path, media_type=OCTETS, headers=headers)
    size = service.core.blobs.size(sha256)
    if size is None:
        raise AbsentError(f"no file {sha256[:16]}", hint="edgekit fleet bundles lists what is here")
    start, end = wanted_range(request.headers.get("range", ""), size)
    headers |= {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
    partial = (start, end) != (0, size)
    if partial:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    chunks = service.core.blobs.read(sha256, start, end)
    return StreamingResponse(chunks, 206 if partial else 200, headers, media_type=OCTETS)


def wanted_range(header: str, size: int) -> tuple[int, int]:
    """(start, end) of `bytes=start-` or `bytes=start-last`; all of it for any other header, as RFC 9110 (14.2) allows.
    Raises UsageError where it begins behind the end."""
    match = _RANGE.fullmatch(header)
    if match is None:
        return 0, size
    start = int(match["start"])
    end = min(size, int(match["last"]) + 1) if match["last"] else size
    if start >= end:
        raise UsageError(f"range {header!r:.60} of {size} bytes", hint="begin before the end")
    return start, end


def somebody(request: Request, service: FleetService) -> None:
    """Raises AuthenticationError, ForbiddenError."""
    serial = serial_of(request)
    if serial:
        service.devices.identify("", serial)
        return
    token = bearer(request)
    if not token.startswith(PREFIXES["device"]):
        service.people.identify(token)
    elif serial is None:
        service.devices.identify(token)
    else:
        raise AuthenticationError("this was asked without a device's certificate", hint="edgekit agent enroll")


@router.post("/bundles", status_code=201)
def accept(body: Offer, person: Person, service: Service) -> BundleView:
    """Verifies a bundle whose files are all here, and takes it in."""
    return service.bundles.accept(person, body)


@router.get("/bundles")
def list_bundles(person: Person, service: Service, after: After = None, limit: Limit = 100) -> Page[BundleView]:
    """The newest first."""
    return service.bundles.list(after, limit)


@router.get("/bundles/{reference}")
def get_bundle(reference: Reference, person: Person, service: Service) -> BundleView:
    """By digest, `name@sha256:...`, or the newest of a name."""
    return service.bundles.get(service.bundles.find(reference))


@router.get("/bundles/{reference}/index")
def get_index(reference: Reference, service: Service, request: Request) -> Offer:
    """Its index and signature as they stand; for people and for devices."""
    somebody(request, service)
    return service.bundles.index(service.bundles.find(reference))


@router.get("/bundles/{reference}/report", response_class=HTMLResponse)
def get_report(reference: Reference, person: Person, service: Service) -> Response:
    """The report page that came with it."""
    return HTMLResponse(service.bundles.report(service.bundles.find(reference)), headers=SEALED)


@router.post("/retention/bundles")
def prune_bundles(
    person: Person,
    service: Service,
    keep: Annotated[int, Query(ge=1, le=1000)] = 5,
    name: Annotated[str, Query(max_length=200)] = "",
) -> tuple[str, ...]:
    """Removes what nothing needs, but the newest of each name."""
    return service.bundles.prune(person, keep, name)


@router.delete("/bundles/{reference}", status_code=204)
def remove_bundle(reference: Reference, person: Person, service: Service) -> None:
    """Where no device runs or wants it."""
    service.bundles.remove(person, service.bundles.find(reference))

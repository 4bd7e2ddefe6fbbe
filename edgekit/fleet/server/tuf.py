"""Signed metadata as The Update Framework's clients ask for it, and the authority that a first contact is checked by.

GET /v1/tuf/timestamp.json, N.root.json, N.snapshot.json, N.targets.json    byte for byte as they were signed
GET /v1/authority                                                           the fleet's certificate, PEM; no secret
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from edgekit.fleet.protocol.wire import API
from edgekit.fleet.server.asking import Service
from edgekit.fleet.server.bundles import somebody

router = APIRouter(prefix=API, tags=["trust"])

NUMBERED = "private, max-age=31536000, immutable"
PEM = "application/x-pem-file"


@router.get("/tuf/{name}", response_class=Response, responses={200: {"content": {"application/json": {}}}})
def get_metadata(
    name: Annotated[str, Path(max_length=64, description="timestamp.json, 1.root.json")],
    service: Service,
    request: Request,
) -> Response:
    """Signed metadata of what may be installed; for people and for devices."""
    somebody(request, service)
    body = service.trust.file(name)
    headers = {"Cache-Control": "no-store" if name == "timestamp.json" else NUMBERED}
    return Response(body, media_type="application/json", headers=headers)


@router.get("/authority", response_class=Response, responses={200: {"content": {PEM: {}}}})
def get_authority(service: Service) -> Response:
    """The certificate of the fleet's authority. Who asks over a connection that is not verified yet compares its
    SHA-256 with the one in the invitation."""
    return Response(service.core.authority.pem, media_type=PEM)

"""Who asks, and for which version: what the routes share."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Header, Query, Request

from edgekit.errors import AuthenticationError, UsageError
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.core import MAX_PAGE
from edgekit.fleet.service.people import Actor
from edgekit.fleet.trust.tokens import PREFIXES

TLS = "tls"  # of the ASGI scope's extensions: {"client_serial": hexadecimal or "", "client_trouble": in words or ""}


def service_of(request: Request) -> FleetService:
    found: FleetService = request.app.state.service
    return found


Service = Annotated[FleetService, Depends(service_of)]


def bearer(request: Request) -> str:
    """Raises AuthenticationError without a token."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise AuthenticationError("this was asked without a token", hint="send Authorization: Bearer TOKEN")
    return str(token).strip()


async def person(request: Request, service: Service) -> Actor:
    return await to_thread.run_sync(service.people.identify, bearer(request))


def serial_of(request: Request) -> str | None:
    """Of the certificate that the connection proved, "" without one; None without TLS. Raises AuthenticationError for
    one that does not count now."""
    tls = request.scope.get("extensions", {}).get(TLS)
    if tls is not None and tls["client_trouble"]:
        raise AuthenticationError(
            f"the device's certificate {tls['client_trouble']}",
            hint="a new one: edgekit fleet invite --device NAME, then edgekit agent enroll --again --token T; "
            "or is a clock wrong?",
        )
    return None if tls is None else str(tls["client_serial"])


async def device(request: Request, service: Service) -> str:
    """By its certificate over TLS; by its token on loopback alone. Raises AuthenticationError, ForbiddenError."""
    serial = serial_of(request)
    if serial is not None:
        if not serial:
            raise AuthenticationError("this was asked without a device's certificate", hint="edgekit agent enroll")
        return await _identify(service, "", serial)
    token = bearer(request)
    if not token.startswith(PREFIXES["device"]):
        raise AuthenticationError("this is for devices", hint="edgekit agent enroll")
    return await _identify(service, token, "")


async def _identify(service: FleetService, token: str, serial: str) -> str:
    """Without a thread where the database need not be asked."""
    if service.devices.is_at_hand(token, serial):
        return service.devices.identify(token, serial)
    return await to_thread.run_sync(service.devices.identify, token, serial)


Person = Annotated[Actor, Depends(person)]
DeviceId = Annotated[str, Depends(device)]
After = Annotated[str | None, Query(max_length=200, description="`next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


def wanted_version(
    if_match: Annotated[str | None, Header(pattern=r'^"\d{1,9}"$', description="The ETag that was read")] = None,
) -> int | None:
    return None if if_match is None else int(if_match.strip('"'))


IfMatch = Annotated[int | None, Depends(wanted_version)]


def etag(version: int) -> dict[str, str]:
    return {"ETag": f'"{version}"'}


def number(text: str, what: str) -> int:
    """Raises UsageError."""
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{what} {text!r:.40}, allowed a number") from None

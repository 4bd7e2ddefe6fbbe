"""Devices and groups: /v1/devices, /v1/groups, /v1/invitations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from edgekit.fleet.protocol.people import (
    DeviceChange,
    DeviceView,
    GroupOrder,
    GroupView,
    InvitationMade,
    InvitationOrder,
)
from edgekit.fleet.protocol.wire import API, Page
from edgekit.fleet.server.asking import After, IfMatch, Limit, Person, Service, etag
from edgekit.fleet.server.repeating import UNTOLD, RepeatableRoute

router = APIRouter(prefix=API, tags=["devices"], route_class=RepeatableRoute)

Key = Annotated[str, Path(max_length=63, description="The id or the name")]
GroupName = Annotated[str, Path(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]


@router.post("/invitations", status_code=201, openapi_extra={UNTOLD: True})
def invite(order: InvitationOrder, person: Person, service: Service) -> InvitationMade:
    """A token to enrol devices with."""
    return service.devices.invite(person, order)


@router.get("/devices")
def list_devices(
    person: Person,
    service: Service,
    selector: Annotated[str, Query(max_length=500)] = "",
    after: After = None,
    limit: Limit = 100,
) -> Page[DeviceView]:
    """By name."""
    return service.devices.list(selector, after, limit)


@router.get("/devices/{key}")
def get_device(key: Key, person: Person, service: Service, response: Response) -> DeviceView:
    """One device, with its slot and the last window that it sent."""
    found = service.devices.get(key)
    response.headers.update(etag(found.version))
    return found


@router.patch("/devices/{key}")
def change_device(key: Key, change: DeviceChange, person: Person, service: Service, version: IfMatch) -> DeviceView:
    """Labels, or its standing: a revoked device is heard no more."""
    return service.devices.change(person, key, change, version)


@router.delete("/devices/{key}", status_code=204)
def remove_device(key: Key, person: Person, service: Service) -> None:
    """It would have to enrol again."""
    service.devices.remove(person, key)


@router.get("/groups")
def list_groups(person: Person, service: Service) -> tuple[GroupView, ...]:
    """Every group, and what its devices run."""
    return service.groups.all()


@router.get("/groups/{name}")
def get_group(name: GroupName, person: Person, service: Service, response: Response) -> GroupView:
    """One group."""
    found = service.groups.get(name)
    response.headers.update(etag(found.version))
    return found


@router.put("/groups/{name}")
def put_group(name: GroupName, order: GroupOrder, person: Person, service: Service, version: IfMatch) -> GroupView:
    """Makes or changes it."""
    return service.groups.put(person, name, order, version)


@router.delete("/groups/{name}", status_code=204)
def remove_group(name: GroupName, person: Person, service: Service) -> None:
    """Its devices stay."""
    service.groups.remove(person, name)

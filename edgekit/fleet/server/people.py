"""People, the audit log, and the whole at a glance: /v1/people, /v1/events, /v1/overview, health."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from edgekit.fleet.protocol.people import EventView, Overview, PersonMade, PersonOrder, PersonView
from edgekit.fleet.protocol.wire import API, Page
from edgekit.fleet.server.asking import Limit, Person, Service
from edgekit.fleet.server.repeating import UNTOLD, RepeatableRoute

router = APIRouter(prefix=API, tags=["people"], route_class=RepeatableRoute)

PersonName = Annotated[str, Path(max_length=63)]


@router.get("/health", tags=["health"])
def health(service: Service) -> dict[str, str]:
    """Whether the service answers and its database does."""
    service.people.all()
    return {"status": "ok"}


@router.get("/overview")
def overview(person: Person, service: Service) -> Overview:
    """Devices, groups, bundles and rollouts, counted."""
    return service.overview()


@router.get("/events")
def events(
    person: Person,
    service: Service,
    after: Annotated[str | None, Query(pattern=r"^\d{1,18}$")] = None,
    limit: Limit = 50,
    subject: Annotated[str, Query(max_length=200)] = "",
) -> Page[EventView]:
    """The audit log, the newest first."""
    return service.core.events(after, limit, subject)


@router.get("/people")
def list_people(person: Person, service: Service) -> tuple[PersonView, ...]:
    """Who may do what."""
    person.need("admin")
    return service.people.all()


@router.post("/people", status_code=201, openapi_extra={UNTOLD: True})
def add_person(order: PersonOrder, person: Person, service: Service) -> PersonMade:
    """With a token that is shown this once."""
    return service.people.make(person, order)


@router.delete("/people/{name}", status_code=204)
def remove_person(name: PersonName, person: Person, service: Service) -> None:
    """The token counts no more."""
    service.people.remove(person, name)

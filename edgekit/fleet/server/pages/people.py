"""People and invitations: who may come in. A token is shown once, on the answer to the form that made it."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import Path
from pydantic import ValidationError
from starlette.responses import Response

from edgekit.fleet.protocol.people import InvitationMade, InvitationOrder, PersonMade, PersonOrder
from edgekit.fleet.server.pages.answering import Context, Page, invalid, page_router
from edgekit.fleet.server.pages.fields import labels, name, seconds, whole
from edgekit.fleet.server.sessions import Form
from edgekit.fleet.service import FleetService

router = page_router()


def _people(service: FleetService) -> Context:
    return {"people": service.people.all(), "made": None}


def _invitations(service: FleetService) -> Context:
    return {"invitations": service.invitations.open(), "made": None}


@router.get("/people")
async def people(page: Page) -> Response:
    page.actor.need("admin")
    return await page.show("people.html", lambda: _people(page.service))


@router.post("/people")
async def add(page: Page, fields: Form) -> Response:
    page.actor.need("admin")

    def make() -> PersonMade:
        try:
            order = PersonOrder(
                name=name(fields.get("name", ""), "name"),
                role=fields.get("role", ""),  # type: ignore[arg-type]
                valid_s=seconds(fields, "days", 86_400, 90, 3650) if fields.get("days", "").strip() else None,
            )
        except ValidationError as error:
            raise invalid(error) from error
        return page.service.people.make(page.actor, order)

    async def attempt() -> Response:
        made = await to_thread.run_sync(make)
        return await page.show("people.html", lambda: _people(page.service), made=made)

    return await page.retry(attempt(), "people.html", lambda: _people(page.service), fields)


@router.post("/people/{who}/remove")
async def remove(page: Page, who: Annotated[str, Path(max_length=63)], fields: Form) -> Response:
    return await page.do(lambda: page.service.people.remove(page.actor, who), "/people")


@router.get("/invitations")
async def invitations(page: Page) -> Response:
    page.actor.need("operator")
    return await page.show("invitations.html", lambda: _invitations(page.service))


@router.post("/invitations")
async def invite(page: Page, fields: Form) -> Response:
    page.actor.need("operator")

    def make() -> InvitationMade:
        try:
            order = InvitationOrder(
                labels=labels(fields.get("labels", "")),
                uses=whole(fields, "uses", 1),
                valid_s=seconds(fields, "hours", 3600, 24, 8760),
            )
        except ValidationError as error:
            raise invalid(error) from error
        return page.service.devices.invite(page.actor, order)

    async def attempt() -> Response:
        made = await to_thread.run_sync(make)
        return await page.show("invitations.html", lambda: _invitations(page.service), made=made)

    return await page.retry(attempt(), "invitations.html", lambda: _invitations(page.service), fields)


@router.post("/invitations/{identifier}/withdraw")
async def withdraw(page: Page, identifier: Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")], fields: Form) -> Response:
    return await page.do(lambda: page.service.invitations.withdraw(page.actor, identifier), "/invitations")

"""Groups: all of them, one of them, making and changing them."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from anyio import to_thread
from fastapi import Path
from starlette.responses import RedirectResponse, Response

from edgekit.errors import AbsentError
from edgekit.fleet.protocol.people import GroupOrder, GroupView
from edgekit.fleet.server.pages.answering import Asked, Context, Page, page_router
from edgekit.fleet.server.pages.fields import name as group_name
from edgekit.fleet.server.pages.fields import number, share, version_of
from edgekit.fleet.server.sessions import Form
from edgekit.fleet.service import FleetService

router = page_router()

GroupName = Annotated[str, Path(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]


def _groups(service: FleetService) -> Context:
    return {"glance": service.glances.now()}


def _group(service: FleetService, name: str) -> Context:
    glance = service.glances.now()
    group = glance.group(name)
    running = Counter(cell.running for cell in group.cells).most_common()
    going = [one for one in service.rollouts.list(limit=30).items if one.group == name]
    return {"glance": glance, "group": group, "running": running, "rollouts": going[:10]}


@router.get("/groups")
async def groups(page: Page) -> Response:
    return await page.show("groups.html", lambda: _groups(page.service))


@router.post("/groups")
async def make(page: Page, fields: Form) -> Response:
    attempt = page.do(lambda: _put(page, group_name(fields.get("name", ""), "group"), fields, 0), _place)
    return await page.retry(attempt, "groups.html", lambda: _groups(page.service), fields)


@router.get("/groups/{name}")
async def group(page: Page, name: GroupName) -> Response:
    return await page.show("group.html", lambda: _group(page.service, name))


@router.post("/groups/{name}")
async def change(page: Page, name: GroupName, fields: Form) -> Response:
    attempt = page.do(lambda: _put(page, name, fields, version_of(fields)), f"/groups/{name}")
    return await page.retry(attempt, "group.html", lambda: _group(page.service, name), fields)


@router.post("/groups/{name}/remove")
async def remove(page: Page, name: GroupName, fields: Form) -> Response:
    return await page.do(lambda: page.service.groups.remove(page.actor, name), "/groups")


@router.get("/groups/{name}/at/{place}")
async def device_at(page: Page, name: GroupName, place: Annotated[int, Path(ge=0, lt=10_000_000)]) -> Response:
    """The device whose cell of the map was clicked."""
    found = (await to_thread.run_sync(page.service.glances.now)).group(name).cells
    if place >= len(found):
        raise AbsentError(f"the group {name} has {len(found):,} devices", hint="reload the page")
    return RedirectResponse(f"/devices/{found[place].name}", status_code=303)


def _place(made: GroupView) -> str:
    return f"/groups/{made.name}"


def _put(page: Asked, name: str, fields: dict[str, str], version: int | None) -> GroupView:
    """`version` 0: there must be none of that name yet."""
    order = GroupOrder(
        selector=fields.get("selector", ""),
        interval_s=number(fields, "interval_s", 30.0),
        compare_share=share(fields.get("compare_share") or "0", "compared answers"),
    )
    return page.service.groups.put(page.actor, name, order, version)

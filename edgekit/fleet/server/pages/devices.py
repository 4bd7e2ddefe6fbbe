"""Devices: found by name, state and labels; one of them over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal
from urllib.parse import quote, urlencode

from fastapi import Depends, Path, Query
from starlette.responses import Response

from edgekit.fleet.protocol.people import DeviceChange, DeviceView
from edgekit.fleet.rollouts.selector import Selector
from edgekit.fleet.server.pages.answering import Asked, Context, Page, page_router
from edgekit.fleet.server.pages.fields import labels, version_of
from edgekit.fleet.server.sessions import Form
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.glance import Cell, CellState, Glance
from edgekit.fleet.service.history import History
from edgekit.fleet.web.charts import Mark, device_charts
from edgekit.fleet.web.wording import short

router = page_router()

ROWS = 50
HOURS = (1, 6, 24, 168)
USUAL_HOURS = 6
BRIEF_S = 4_500.0  # a device with no more than that to show is shown over an hour
MOST_MARKS = 12
MOST_PLANS = 6  # a device that changes its plan more often than that shows its bundles alone

Key = Annotated[str, Path(max_length=63)]
Hours = Annotated[int | None, Query(ge=1, le=HOURS[-1])]


class Search:
    """What the table shows; the fields of its form."""

    def __init__(
        self,
        name: Annotated[str, Query(max_length=63)] = "",
        selector: Annotated[str, Query(max_length=500)] = "",
        state: Annotated[CellState | Literal[""], Query()] = "",
        running: Annotated[str, Query(pattern=r"^([0-9a-f]{64}|none|)$")] = "",
        after: Annotated[str, Query(max_length=63)] = "",
    ) -> None:
        self.name, self.selector, self.state, self.running, self.after = name.strip(), selector, state, running, after

    def find(self, glance: Glance) -> Iterator[Cell]:
        """Raises UsageError for the selector."""
        chosen, part = Selector.parse(self.selector), self.name.lower()
        for cell in glance.cells:
            if self.state and cell.state != self.state:
                continue
            if self.running and (cell.running or "none") != self.running:
                continue
            if part in cell.name and (not chosen.terms or chosen.holds(cell.all_labels())):
                yield cell

    def query(self, **other: str) -> str:
        """The same search with something else."""
        fields = {"name": self.name, "selector": self.selector, "state": self.state, "running": self.running, **other}
        return urlencode({key: value for key, value in fields.items() if value})

    def rows(self, service: FleetService) -> Context:
        glance = service.glances.now()
        found = list(self.find(glance))
        behind = [cell for cell in found if cell.name > self.after]
        following = self.query(after=behind[ROWS - 1].name) if len(behind) > ROWS else ""
        return {
            "glance": glance,
            "search": self,
            "found": len(found),
            "cells": behind[:ROWS],
            "first": len(found) - len(behind) + 1,
            "following": following,
        }


@router.get("/devices")
async def devices(page: Page, search: Annotated[Search, Depends()]) -> Response:
    return await page.show("devices.html", lambda: search.rows(page.service))


@router.get("/devices/{key}")
async def device(page: Page, key: Key, hours: Hours = None) -> Response:
    return await page.show("device.html", lambda: _device(page.service, key, hours))


def _device(service: FleetService, key: str, hours: int | None = None) -> Context:
    """`hours` None: as many as there is something to see of."""
    view = service.devices.get(key)
    now = service.core.now()
    history = service.histories.of(view.id, now - 3600 * (hours or USUAL_HOURS), now)
    if hours is None:
        brief = bool(history.spans) and history.spans[0].starts_at > now - BRIEF_S
        hours = 1 if brief else USUAL_HOURS
        history = service.histories.of(view.id, now - 3600, now) if brief else history
    glance = service.glances.now()
    labelled = {**view.labels, "name": view.name, "tier": view.tier}
    events = service.core.events(None, 20, view.name).items
    return {
        "device": view,
        "history": history,
        "charts": device_charts(history.spans),
        "marks": _marks(history, glance.names),
        "hours": hours,
        "all_hours": HOURS,
        "cell": next((cell for cell in glance.cells if cell.name == view.name), None),
        "groups": [one.view.name for one in glance.groups if Selector.parse(one.view.selector).holds(labelled)],
        "names": glance.names,
        "events": events,
        "findings": service.insights.list(None, view.id, None, 10).items,
        "plan": service.plans.view(view.id),
    }


def _marks(history: History, names: Mapping[str, str]) -> list[Mark]:
    """Where another bundle or another plan began to answer; the latest of them."""
    bundles = _changes([(span.starts_at, digest) for span in history.spans for digest in span.digests])
    plans = _changes([(span.starts_at, plan) for span in history.spans for plan in span.plans])
    marks = [Mark(at, f"answers with {names.get(digest, 'a bundle')} {short(digest)}") for at, digest in bundles]
    if len(plans) <= MOST_PLANS:
        marks += [Mark(at, f"plan {plan}") for at, plan in plans]
    return sorted(marks, key=lambda mark: mark.at)[-MOST_MARKS:]


def _changes(seen: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those that are not what was before them."""
    return [after for before, after in pairwise(seen) if after[1] != before[1]]


@router.post("/devices/{key}/labels")
async def relabel(page: Page, key: Key, fields: Form) -> Response:
    def change() -> DeviceView:
        wanted = DeviceChange(labels=labels(fields.get("labels", "")))
        return page.service.devices.change(page.actor, key, wanted, version_of(fields))

    attempt = page.do(change, _place)
    return await page.retry(attempt, "device.html", lambda: _device(page.service, key), fields)


@router.post("/devices/{key}/replan")
async def replan(page: Page, key: Key, fields: Form) -> Response:
    return await page.do(lambda: page.service.plans.replan(page.actor, key), f"/devices/{quote(key)}")


@router.post("/devices/{key}/revoke")
async def revoke(page: Page, key: Key, fields: Form) -> Response:
    return await _stand(page, key, DeviceChange(standing="revoked"))


@router.post("/devices/{key}/reinstate")
async def reinstate(page: Page, key: Key, fields: Form) -> Response:
    return await _stand(page, key, DeviceChange(standing="active"))


async def _stand(page: Asked, key: str, change: DeviceChange) -> Response:
    return await page.do(lambda: page.service.devices.change(page.actor, key, change), _place)


def _place(view: DeviceView) -> str:
    return f"/devices/{view.name}"


@router.post("/devices/{key}/remove")
async def remove(page: Page, key: Key, fields: Form) -> Response:
    return await page.do(lambda: page.service.devices.remove(page.actor, key), "/devices")

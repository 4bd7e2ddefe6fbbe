"""Rollouts: all of them, one of them, starting one, and turning one."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from starlette.responses import Response

from edgekit.fleet.protocol.rollouts import RolloutOrder, RolloutView
from edgekit.fleet.server.pages.answering import Context, Page, page_router
from edgekit.fleet.server.pages.fields import number, shares, whole
from edgekit.fleet.server.sessions import Form
from edgekit.fleet.service import FleetService

router = page_router()

ROWS = 30
BUNDLES = 100  # that can be chosen from

Key = Annotated[str, Path(pattern=r"^([0-9a-f]{4,32}|latest)$")]
# What the form of a new rollout begins with.
USUAL = {
    "bundle": "",
    "group": "",
    "steps": "5%, 25%, 100%",
    "guards": "errors<=1%",
    "soak_s": "300",
    "timeout_s": "1800",
    "max_wrong": "0",
    "window": "0",
}


def _rollouts(service: FleetService, after: str | None) -> Context:
    found = service.rollouts.list(after, ROWS)
    return {"rollouts": found, "failing": service.progress.failing([one.id for one in found.items]), "after": after}


def _rollout(service: FleetService, key: str) -> Context:
    view = service.rollouts.get(key)
    return {
        "rollout": view,
        "progress": service.progress.of(view.id),
        "events": service.core.events(None, 20, view.id).items,
    }


def _choices(service: FleetService) -> Context:
    return {"bundles": service.bundles.list(None, BUNDLES).items, "glance": service.glances.now()}


@router.get("/rollouts")
async def rollouts(page: Page, after: Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$")] = None) -> Response:
    return await page.show("rollouts.html", lambda: _rollouts(page.service, after))


@router.get("/rollouts/new")
async def ask(
    page: Page,
    bundle: Annotated[str, Query(pattern=r"^([0-9a-f]{64}|)$")] = "",
    group: Annotated[str, Query(max_length=63)] = "",
) -> Response:
    page.actor.need("operator")
    values = {**USUAL, "bundle": bundle, "group": group}
    return await page.show("rollout_new.html", lambda: _choices(page.service), values=values)


@router.post("/rollouts")
async def start(page: Page, fields: Form) -> Response:
    def begin() -> RolloutView:
        order = RolloutOrder(
            bundle=fields.get("bundle", ""),
            group=fields.get("group", ""),
            steps=shares(fields.get("steps", ""), "steps"),
            guards=fields.get("guards", ""),
            soak_s=number(fields, "soak_s", 300.0),
            timeout_s=number(fields, "timeout_s", 1800.0),
            max_wrong=whole(fields, "max_wrong", 0),
            window=whole(fields, "window", 0),
        )
        return page.service.rollouts.start(page.actor, order)

    attempt = page.do(begin, _place)
    return await page.retry(attempt, "rollout_new.html", lambda: _choices(page.service), {**USUAL, **fields})


@router.get("/rollouts/{key}")
async def rollout(page: Page, key: Key) -> Response:
    return await page.show("rollout.html", lambda: _rollout(page.service, key))


@router.post("/rollouts/{key}/pause")
async def pause(page: Page, key: Key, fields: Form) -> Response:
    return await page.do(lambda: page.service.rollouts.pause(page.actor, key), _place)


@router.post("/rollouts/{key}/resume")
async def resume(page: Page, key: Key, fields: Form) -> Response:
    return await page.do(lambda: page.service.rollouts.resume(page.actor, key), _place)


@router.post("/rollouts/{key}/rollback")
async def roll_back(page: Page, key: Key, fields: Form) -> Response:
    return await page.do(lambda: page.service.rollouts.roll_back(page.actor, key), _place)


def _place(view: RolloutView) -> str:
    return f"/rollouts/{view.id}"

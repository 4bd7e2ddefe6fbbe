"""Rollouts: /v1/rollouts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response

from edgekit.fleet.protocol.rollouts import RolloutOrder, RolloutView
from edgekit.fleet.protocol.wire import API, Page
from edgekit.fleet.server.asking import After, Limit, Person, Service, etag
from edgekit.fleet.server.repeating import RepeatableRoute

router = APIRouter(prefix=API, tags=["rollouts"], route_class=RepeatableRoute)

Key = Annotated[str, Path(pattern=r"^([0-9a-f]{4,32}|latest)$", description="The id, its front, or `latest`")]


@router.post("/rollouts", status_code=201)
def start(order: RolloutOrder, person: Person, service: Service) -> RolloutView:
    """Of a bundle to a group."""
    return service.rollouts.start(person, order)


@router.get("/rollouts")
def list_rollouts(person: Person, service: Service, after: After = None, limit: Limit = 50) -> Page[RolloutView]:
    """The newest first."""
    return service.rollouts.list(after, limit)


@router.get("/rollouts/{key}")
def get_rollout(key: Key, person: Person, service: Service, response: Response) -> RolloutView:
    """One rollout: its stages, its tally, its guards."""
    found = service.rollouts.get(key)
    response.headers.update(etag(found.version))
    return found


@router.post("/rollouts/{key}/pause")
def pause(key: Key, person: Person, service: Service) -> RolloutView:
    """No further device is asked."""
    return service.rollouts.pause(person, key)


@router.post("/rollouts/{key}/resume")
def resume(key: Key, person: Person, service: Service) -> RolloutView:
    """Of a paused one."""
    return service.rollouts.resume(person, key)


@router.post("/rollouts/{key}/rollback")
def roll_back(key: Key, person: Person, service: Service) -> RolloutView:
    """Every device that was asked gets back what it ran before."""
    return service.rollouts.roll_back(person, key)

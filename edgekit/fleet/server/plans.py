"""How devices should run their bundles: /v1/devices/<key>/plan."""

from __future__ import annotations

from fastapi import APIRouter

from edgekit.fleet.protocol.insights import PlanView
from edgekit.fleet.protocol.wire import API
from edgekit.fleet.server.asking import Person, Service
from edgekit.fleet.server.devices import Key
from edgekit.fleet.server.repeating import RepeatableRoute

router = APIRouter(prefix=API, tags=["plans"], route_class=RepeatableRoute)


@router.get("/devices/{key}/plan")
def get_plan(key: Key, person: Person, service: Service) -> PlanView:
    """Its link and latency as measured, what it was told, and what would be chosen now."""
    return service.plans.view(key)


@router.post("/devices/{key}/replan")
def replan(key: Key, person: Person, service: Service) -> PlanView:
    """The best plan now, told to the device."""
    return service.plans.replan(person, key)

"""What agents ask: /v1/enroll, /v1/agent/..."""

from __future__ import annotations

import asyncio

from anyio import to_thread
from fastapi import APIRouter, Request

from edgekit.fleet.protocol.agents import Desired, Enrolled, Enrolment, Renewal, Sync
from edgekit.fleet.protocol.wire import API
from edgekit.fleet.server.asking import DeviceId, Service
from edgekit.fleet.server.waiting import Waiters

router = APIRouter(prefix=API, tags=["agents"])


@router.post("/enroll")
def enroll(enrolment: Enrolment, service: Service) -> Enrolled:
    """A token and a certificate request become a device."""
    return service.devices.enroll(enrolment)


@router.post("/agent/renew")
def renew(renewal: Renewal, device: DeviceId, service: Service) -> Enrolled:
    """A new certificate; the one before counts no more."""
    return service.devices.renew(device, renewal)


@router.post("/agent/sync")
async def sync(body: Sync, device: DeviceId, service: Service, request: Request) -> Desired:
    """Takes what the device did and saw, and says what it is to do; waits up to `wait_s` for something new."""
    waiters: Waiters = request.app.state.waiters
    event = waiters.expect(device)
    try:
        desired = await to_thread.run_sync(service.devices.sync, device, body)
        if desired.generation != body.known or body.wait_s == 0:
            return desired
        try:
            await asyncio.wait_for(event.wait(), body.wait_s)
        except asyncio.TimeoutError:
            return desired
        return await to_thread.run_sync(service.devices.desired, device)
    finally:
        waiters.forget(device, event)

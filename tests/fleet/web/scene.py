"""Devices, a bundle and people for the pages' tests: put in by the service's own calls, with no agent behind them."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from starlette.testclient import TestClient

from edgekit.bundle.manifest import Tier
from edgekit.fleet.protocol.agents import Enrolment, Facts, Slot, Sync
from edgekit.fleet.protocol.bundles import BundleView, Offer
from edgekit.fleet.protocol.people import GroupOrder, InvitationOrder, PersonOrder, Role
from edgekit.fleet.protocol.windows import Health, LinkSeen, Window
from edgekit.fleet.protocol.wire import new_identifier
from edgekit.fleet.server.sessions import WORD
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from edgekit.fleet.telemetry.histogram import histogram_of
from edgekit.fleet.trust.authority import certificate_request
from tests.fleet.bundles import make_bundle

ADMIN = Actor("admin", "admin")


def push(service: FleetService, folder: Path, name: str = "net", scale: float = 2.0) -> BundleView:
    place = make_bundle(folder / f"{name}-{scale}", name=name, scale=scale, as_directory=True)
    offer = Offer(index=(place / "index.json").read_text())
    for one in service.bundles.offer(ADMIN, offer).missing:
        service.bundles.receive(ADMIN, one.sha256, 0, one.size_bytes, [(place / one.path).read_bytes()])
    return service.bundles.accept(ADMIN, offer)


def enroll(service: FleetService, name: str, tier: Tier = "device", system: str = "Debian", **labels: str) -> str:
    """The device's id."""
    from cryptography.hazmat.primitives.asymmetric import ec

    made = service.devices.invite(ADMIN, InvitationOrder(labels=labels))
    request = certificate_request(ec.generate_private_key(ec.SECP256R1()), name)
    facts = Facts(boot=new_identifier(), agent="0.1.0", system=system, machine="aarch64", tier=tier)
    return service.devices.enroll(Enrolment(token=made.token, name=name, request=request, facts=facts)).device


def group(service: FleetService, name: str = "pi", selector: str = "board=rpi4") -> None:
    service.groups.put(ADMIN, name, GroupOrder(selector=selector))


def say(service: FleetService, device: str, slot: Slot, *windows: Window) -> None:
    service.devices.sync(device, Sync(slot=slot, windows=windows))


def follow(service: FleetService, *devices: str) -> None:
    """Each says that it answers right with what it should run."""
    for device in devices:
        wanted = service.devices.desired(device).bundle
        digest = None if wanted is None else wanted.digest
        say(service, device, Slot(running=digest, checked=4, right=4))


def window(sequence: int, started_at: float, digest: str, latency_ms: float = 20.0, plan: str = "local") -> Window:
    return Window(
        sequence=sequence,
        started_at=started_at,
        seconds=60.0,
        digest=digest,
        plan=plan,
        answered=100,
        errors=1,
        latency=histogram_of([latency_ms] * 100),
        link=LinkSeen(bandwidth_mbps=12.5, rtt_ms=31.0, loss=0.0),
        health=Health(temperature_c=61.5, power_w=4.2),
    )


class Visitor:
    """A browser without a screen: keeps cookies, and sends forms as they stand on the page."""

    def __init__(self, client: TestClient) -> None:
        self.http = client

    def get(self, path: str, **settings: object) -> httpx.Response:
        found: httpx.Response = self.http.get(path, follow_redirects=False, **settings)  # type: ignore[arg-type]
        return found

    def word(self, path: str = "/") -> str:
        """Of the first form of a page."""
        found = re.search(rf'name="{WORD}" value="([0-9a-f]+)"', self.get(path).text)
        assert found is not None
        return found[1]

    def post(
        self, path: str, fields: dict[str, str] | None = None, word: str | None = None, **settings: object
    ) -> httpx.Response:
        data = {WORD: self.word() if word is None else word, **(fields or {})}
        found: httpx.Response = self.http.post(path, data=data, follow_redirects=False, **settings)  # type: ignore[arg-type]
        return found

    def sign_in(self, token: str, after: str = "/") -> httpx.Response:
        return self.post("/sign-in", {"token": token, "next": after}, word=self.word("/sign-in"))


def person(service: FleetService, name: str, role: Role) -> str:
    """The token."""
    return service.people.make(ADMIN, PersonOrder(name=name, role=role)).token

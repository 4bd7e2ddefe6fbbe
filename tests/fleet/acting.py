"""What people and devices do to a fleet, in a line each, for tests of every room."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from edgekit.bundle.layout import INDEX, SIGNATURE, parse_index
from edgekit.fleet.protocol.agents import Enrolled, Enrolment, Facts, Slot, Sync
from edgekit.fleet.protocol.bundles import BundleView, Offer
from edgekit.fleet.protocol.people import InvitationOrder
from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.protocol.wire import new_identifier
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from edgekit.fleet.trust.authority import certificate_request

ADMIN = Actor("ada", "admin")
KEY = ec.generate_private_key(ec.SECP256R1())


def facts(**others: str) -> Facts:
    return Facts(**{"boot": new_identifier(), "agent": "1", "system": "Linux", "machine": "aarch64", **others})  # type: ignore[arg-type]


def enroll(fleet: FleetService, name: str, labels: dict[str, str] | None = None, tier: str = "device") -> Enrolled:
    token = fleet.devices.invite(ADMIN, InvitationOrder(labels=labels or {})).token
    return fleet.devices.enroll(
        Enrolment(token=token, name=name, request=certificate_request(KEY, name), facts=facts(tier=tier))
    )


def window(sequence: int, digest: str, at: float, **others: object) -> Window:
    return Window(sequence=sequence, started_at=at, seconds=30.0, digest=digest, answered=10, **others)  # type: ignore[arg-type]


def says(digest: str | None, *windows: Window, known: int = 0, **slot: object) -> Sync:
    """Of a device that answers with `digest`."""
    return Sync(known=known, slot=Slot(running=digest, **slot), windows=windows)  # type: ignore[arg-type]


def push(fleet: FleetService, folder: Path, actor: Actor = ADMIN) -> BundleView:
    """`folder`: a bundle as a directory. Only what is lacking travels."""
    signature = folder / SIGNATURE
    offer = Offer(index=(folder / INDEX).read_text(), signature=signature.read_text() if signature.exists() else "")
    for missing in fleet.bundles.offer(actor, offer).missing:
        data = (folder / missing.path).read_bytes()[missing.received :]
        fleet.bundles.receive(actor, missing.sha256, missing.received, missing.size_bytes, [data])
    return fleet.bundles.accept(actor, offer)


def files_of(folder: Path) -> dict[str, str]:
    """Path -> digest, of a bundle as a directory."""
    index = parse_index((folder / INDEX).read_bytes(), str(folder))
    return {path: entry.sha256 for path, entry in index.files.items()}

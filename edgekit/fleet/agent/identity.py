"""Who this device is: a key that never leaves it, and the certificate that the fleet gave for it."""

from __future__ import annotations

import platform
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

import edgekit
from edgekit.bundle.manifest import Tier
from edgekit.errors import ConflictError, UsageError
from edgekit.fleet.agent.home import Home
from edgekit.fleet.client import AgentClient
from edgekit.fleet.protocol.agents import Enrolled, Enrolment, Facts
from edgekit.fleet.protocol.wire import Identifier, Name, Wire, new_identifier
from edgekit.fleet.trust.authority import certificate_request, private_pem


class Identity(Wire):
    """`token` counts on loopback alone; over TLS the certificate does."""

    fleet: str
    device: Identifier
    name: Name
    token: str
    tier: Tier = "device"


def facts(tier: Tier, profile: str = "", formats: tuple[str, ...] = ()) -> Facts:
    """Of this machine; a new `boot` each time."""
    return Facts(
        boot=new_identifier(),
        agent=edgekit.__version__,
        system=f"{platform.system()} {platform.release()}"[:200],
        machine=platform.machine(),
        profile=profile,
        tier=tier,
        formats=formats,
    )


def enroll(home: Home, url: str, token: str, name: str, tier: Tier, ca: Path | None = None) -> Identity:
    """Makes the key, asks for the certificate, and writes both. Raises ConflictError where this folder is enrolled
    already, and like `AgentClient.enroll`; nothing is then left."""
    home.make()
    if (home.path / "identity.json").exists():
        raise ConflictError(
            f"{home.path} is enrolled already", hint="edgekit agent status tells where; --home names another folder"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    client = AgentClient(url, ca=ca)
    try:
        enrolled = client.enroll(
            Enrolment(token=token, name=name, request=certificate_request(key, name), facts=facts(tier))
        )
    finally:
        client.close()
    home.replace("device.key", private_pem(key))
    return _keep(
        home, Identity(fleet=url, device=enrolled.device, name=name, token=enrolled.token, tier=tier), enrolled
    )


def _keep(home: Home, identity: Identity, enrolled: Enrolled) -> Identity:
    home.replace("device.pem", enrolled.certificate.encode())
    home.replace("fleet.pem", enrolled.authority.encode())
    home.replace("root.json", enrolled.root.encode())
    home.replace("identity.json", identity.model_dump_json(indent=2).encode())  # last: it says that all is there
    return identity


def load_identity(home: Home) -> Identity:
    """Raises UsageError where this folder is not enrolled."""
    path = home.path / "identity.json"
    try:
        return Identity.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"{home.path} is not enrolled", hint="edgekit agent enroll --fleet URL --token TOKEN"
        ) from None
    except (OSError, ValidationError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="enroll again") from error


def connect(home: Home, identity: Identity) -> AgentClient:
    certificate = (home.path / "device.pem", home.path / "device.key")
    return AgentClient(identity.fleet, identity.token, home.path / "fleet.pem", certificate)

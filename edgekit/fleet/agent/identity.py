"""Who this device is, as its folder says. Nothing here makes keys: `enrolment` does, where it is needed."""

from __future__ import annotations

import platform
from pathlib import Path

from pydantic import ValidationError

import edgekit
from edgekit.bundle.manifest import Tier
from edgekit.errors import UsageError
from edgekit.fleet.agent.home import Home
from edgekit.fleet.protocol.agents import Facts
from edgekit.fleet.protocol.wire import Identifier, Name, Wire, new_identifier

DEVICE, AUTHORITY, ROOT, IDENTITY = "device.pem", "fleet.pem", "root.json", "identity.json"


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


def load_identity(home: Home) -> Identity:
    """Raises UsageError where this folder is not enrolled."""
    path = home.path / IDENTITY
    try:
        return Identity.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"{home.path} is not enrolled", hint="edgekit agent enroll --fleet URL --token TOKEN"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", hint="--home names a folder of this user's"
        ) from error
    except ValidationError as error:  # whose own words show what is in the file, which may be the token
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(key) for key in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise UsageError(f"{path} is damaged: {what}", hint="edgekit agent enroll --again makes it anew") from None


def kept_name(home: Home) -> str | None:
    """What this folder was enrolled as; None where it was not, or that cannot be read."""
    try:
        return load_identity(home).name
    except UsageError:
        return None


def certificate_of(home: Home) -> tuple[Path, Path]:
    """Both halves lie in one file, which one rename replaces."""
    return home.path / DEVICE, home.path / DEVICE


def authority_of(home: Home) -> Path | None:
    """What the fleet's certificate is verified by; None for the system's authorities."""
    path = home.path / AUTHORITY
    return path if path.exists() else None

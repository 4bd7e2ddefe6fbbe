"""How a device comes into a fleet and stays in it: a key that never leaves it, and a certificate for it in time."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from edgekit.bundle.manifest import Tier
from edgekit.errors import AuthenticationError, ConflictError, EdgekitError, MismatchError, UnreachableError, UsageError
from edgekit.fleet.agent.disk import output_error
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.identity import AUTHORITY, DEVICE, IDENTITY, ROOT, Identity, facts
from edgekit.fleet.client import AgentClient
from edgekit.fleet.protocol.agents import Enrolled, Enrolment, Renewal
from edgekit.fleet.protocol.wire import API
from edgekit.fleet.trust.authority import certificate_request, first_certificate, private_pem, span_of
from edgekit.fleet.trust.tokens import pin_of, secret_of

RENEW_AT = 2 / 3  # of a certificate's life
MOST_BYTES = 16_384  # of a certificate
TIMEOUT_S = 30.0


def enroll(
    home: Home, url: str, token: str, name: str, tier: Tier, ca: Path | None = None, *, again: bool = False
) -> Identity:
    """Makes the key, asks for the certificate, and writes both. The fleet is verified by `ca`, else by the fingerprint
    that the invitation carries, else by the system's authorities. `again`: over what this folder was before; its
    bundles stay.

    Raises ConflictError where this folder is enrolled already, AuthenticationError where the fleet is not the one of
    the invitation, and like `AgentClient.enroll`; what was there before then stays, and what was not is gone."""
    was_there = home.path.exists()
    home.make()
    try:
        return _enroll(home, url, token, name, tier, ca, again)
    except EdgekitError:
        if not was_there:
            home.unmake()
        raise


def _enroll(home: Home, url: str, token: str, name: str, tier: Tier, ca: Path | None, again: bool) -> Identity:
    if (home.path / IDENTITY).exists() and not again:
        raise ConflictError(
            f"{home.path} is enrolled already",
            hint="edgekit agent status tells where; --again gives it a new key, --home names another folder",
        )
    pem = _anchor(url, pin_of(token), ca)
    anchor = f"{AUTHORITY}.new"
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        if pem is not None:
            home.replace(anchor, pem.encode())
        client = AgentClient(url, ca=None if pem is None else home.path / anchor)
        try:
            enrolled = client.enroll(_asked(secret_of(token), name, certificate_request(key, "device"), tier))
        finally:
            client.close()
    finally:
        (home.path / anchor).unlink(missing_ok=True)
    return _keep(
        home,
        Identity(fleet=url, device=enrolled.device, name=name, token=enrolled.token, tier=tier),
        enrolled,
        key,
        pem,
    )


def _asked(token: str, name: str, request: str, tier: Tier) -> Enrolment:
    try:
        return Enrolment(token=token, name=name, request=request, facts=facts(tier))
    except ValidationError as error:  # which would show the token
        wrong = {str(one["loc"][0]) for one in error.errors(include_input=False)}
        what = f"the name {name!r:.80}" if "name" in wrong else "the token"
        raise UsageError(
            f"{what} cannot be", hint="--name: small letters, digits, dots and dashes, 63 at most; --token as invited"
        ) from None


def _anchor(url: str, pin: str, ca: Path | None) -> str | None:
    """What the fleet's certificate is verified by, PEM; None for the system's authorities."""
    if ca is not None:
        try:
            return ca.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{ca} cannot be read: {error}", hint="--ca names a PEM file") from error
    return fetch_authority(url, pin) if pin and url.startswith("https:") else None


def fetch_authority(url: str, pin: str) -> str:
    """The fleet's authority, over a connection that nothing verifies yet: what comes is compared with the SHA-256 that
    the invitation carries, and of it that certificate alone is taken: others behind it would be trusted as well. Raises
    AuthenticationError for another one, UnreachableError."""
    data = b""
    try:
        with httpx.stream(
            "GET", f"{url.rstrip('/')}{API}/authority", verify=False, timeout=TIMEOUT_S, trust_env=False
        ) as answer:
            for chunk in answer.iter_bytes(MOST_BYTES):
                data += chunk
                if len(data) > MOST_BYTES:
                    break
    except httpx.HTTPError as error:
        raise UnreachableError(
            f"{url} does not answer: {error or type(error).__name__}", hint="does it run?"
        ) from error
    try:
        pem, found = first_certificate(data[:MOST_BYTES].decode())
    except ValueError:
        pem, found = "", "no certificate"
    if found != pin:
        raise AuthenticationError(
            f"{url} is not the fleet that made the invitation: its authority is {found[:16]}, invited by {pin[:16]}",
            hint="somebody may be in between; or the fleet was set up anew: ask for a new invitation",
        )
    return pem


def _keep(
    home: Home, identity: Identity, enrolled: Enrolled, key: ec.EllipticCurvePrivateKey, pem: str | None
) -> Identity:
    home.replace(DEVICE, _checked(enrolled.certificate, key) + private_pem(key))
    if pem is not None:
        home.replace(AUTHORITY, pem.encode())
    else:
        try:
            (home.path / AUTHORITY).unlink(missing_ok=True)
        except OSError as error:
            raise output_error(home.path / AUTHORITY, error) from error
    home.replace(ROOT, enrolled.root.encode())
    home.replace(IDENTITY, identity.model_dump_json(indent=2).encode())  # last: it says that all is there
    return identity


def _checked(certificate: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Raises MismatchError for a certificate of another key, before the one that counts is lost."""
    try:
        fits = x509.load_pem_x509_certificate(certificate.encode()).public_key() == key.public_key()
    except (ValueError, x509.InvalidVersion):
        fits = False
    if not fits:
        raise MismatchError("the fleet sent a certificate for another key", hint="is it an edgekit fleet?")
    return certificate.encode()


def is_renewal_due(home: Home, now: float | None = None) -> bool:
    """Raises UsageError where the certificate cannot be read."""
    path = home.path / DEVICE
    try:
        starts_at, ends_at = span_of(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="enroll again: --again") from error
    return (time.time() if now is None else now) >= starts_at + RENEW_AT * (ends_at - starts_at)


def renew(home: Home, client: AgentClient, name: str) -> None:
    """A new key and its certificate, in the place of those before; they count until the new ones are used. Raises like
    `AgentClient.renew`, MismatchError, OutputError; what was there then stays."""
    key = ec.generate_private_key(ec.SECP256R1())
    enrolled = client.renew(Renewal(request=certificate_request(key, name)))
    home.replace(DEVICE, _checked(enrolled.certificate, key) + private_pem(key))

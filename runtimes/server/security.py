"""Who may call a node: the token, the certificates, and where it may listen without them."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgekit.errors import AuthenticationError, MissingExtraError, NodeError, UsageError
from edgekit.runtimes.loopback import is_loopback
from edgekit.runtimes.server.schedule import Tenant
from edgekit.runtimes.server.tenants import Guest

_PREFIX = "bearer "


@dataclass(frozen=True)
class Security:
    """`certificate`: (chain, key) in PEM files. `client_ca`: callers must have a certificate that it signed. `guests`:
    tenants with tokens of their own; who shows `token` is the tenant "", the owner."""

    token: str = ""
    certificate: tuple[Path, Path] | None = None
    client_ca: Path | None = None
    guests: tuple[Guest, ...] = ()

    def __post_init__(self) -> None:
        """Raises UsageError where a tenant shows the owner's token: it would be the owner, without a quota."""
        same = [guest.tenant.name for guest in self.guests if self.token and guest.token == self.token]
        if same:
            raise UsageError(
                f"the tenant {same[0]} has the owner's token (--token-file), allowed one of its own",
                hint="openssl rand -hex 32 > token",
            )

    @property
    def tenants(self) -> tuple[Tenant, ...]:
        return tuple(guest.tenant for guest in self.guests)

    @property
    def wants_token(self) -> bool:
        return bool(self.token or self.guests)

    def check_host(self, host: str) -> None:
        """Raises NodeError for an address that others reach, without a token and TLS."""
        missing = [
            name for name, given in (("--token-file", self.wants_token), ("--tls", self.certificate)) if not given
        ]
        if missing and not is_loopback(host):
            raise NodeError(
                f"listening on {host} without {' and '.join(missing)}: others could use this node, or read along",
                hint="give both, or listen on 127.0.0.1",
            )
        if self.client_ca is not None and self.certificate is None:
            raise NodeError(
                "--client-ca without --tls", hint="callers' certificates are part of TLS: give --tls cert,key"
            )

    def check_certificate(self) -> None:
        """Raises UsageError for files that cannot be read, NodeError for those that do not hold a certificate in its
        dates and the key that belongs to it."""
        if self.certificate is None:
            return
        try:
            from cryptography import x509
            from cryptography.hazmat.primitives.serialization import load_pem_private_key
        except ImportError as error:
            raise MissingExtraError("cryptography", "serve", "reading certificates") from error
        chain, key = (_read(path) for path in self.certificate)
        try:
            leaf = x509.load_pem_x509_certificates(chain)[0]
            matches = load_pem_private_key(key, None).public_key() == leaf.public_key()
        except (ValueError, TypeError) as error:
            raise NodeError(
                f"{self.certificate[0]} and {self.certificate[1]} are no PEM certificate and key: {error}",
                hint="give --tls cert.pem,key.pem, the key without a password",
            ) from error
        if not matches:
            raise NodeError(f"the key {self.certificate[1]} is not that of {self.certificate[0]}", hint="give the pair")
        now = datetime.now(timezone.utc)
        if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
            raise NodeError(
                f"{self.certificate[0]} is valid from {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc}, "
                f"now it is {now:%Y-%m-%d %H:%M} UTC",
                hint="renew the certificate, or set the clock",
            )
        if self.client_ca is not None:
            try:
                x509.load_pem_x509_certificates(_read(self.client_ca))
            except ValueError as error:
                raise NodeError(
                    f"{self.client_ca} holds no PEM certificate: {error}", hint="give the callers' CA"
                ) from error

    def grpc_credentials(self) -> Any:
        """None without a certificate."""
        if self.certificate is None:
            return None
        import grpc

        chain, key = (_read(path) for path in self.certificate)
        roots = _read(self.client_ca) if self.client_ca else None
        return grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=roots is not None)

    def check(self, authorization: str | None) -> str:
        """The name of the tenant whose token the header brings, "" for the owner and where no token is wanted. Raises
        AuthenticationError for any other; tokens are compared in constant time."""
        if not self.wants_token:
            return ""
        given = authorization or ""
        shown = given[len(_PREFIX) :].strip().encode() if given[: len(_PREFIX)].lower() == _PREFIX else b""
        known = [("", self.token), *((guest.tenant.name, guest.token) for guest in self.guests)]
        fitting = [name for name, token in known if token and hmac.compare_digest(shown, token.encode())]
        if not fitting:
            what = "a wrong token" if given else "no token"
            raise AuthenticationError(f"this node was given {what}", hint="send Authorization: Bearer <token>")
        return fitting[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="check its path and permissions") from error

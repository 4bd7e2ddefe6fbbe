"""The fleet's own certificate authority: ECDSA on P-256, certificates as RFC 5280 has them.

Device certificates are for clients only and short-lived (`DEVICE_DAYS`); an agent renews its own at two thirds of its
life, and the one before counts until the new one is used. The service's own certificate comes from the same authority,
unless the owner brings one.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgekit.errors import StoreError, UsageError
from edgekit.fleet.trust.files import locked, read_private, write_private

AUTHORITY_DAYS, SERVICE_DAYS, DEVICE_DAYS = 3650, 397, 90
SKEW = timedelta(minutes=5)  # clocks of devices are not exact


@dataclass(frozen=True)
class Issued:
    """`serial` in hexadecimal."""

    pem: str
    serial: str
    ends_at: float


class Authority:
    """Its key and certificate in `folder`, made at the first use."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError where the folder holds something else, or cannot be written."""
        self.key_path, self.certificate_path = folder / "authority.key", folder / "authority.pem"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(folder):
                if not self.certificate_path.exists():
                    self._make()
            key = serialization.load_pem_private_key(read_private(self.key_path), None)
            self._certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
        except OSError as error:
            raise StoreError(f"cannot use {folder}: {error.strerror}", hint="check its permissions") from error
        except ValueError as error:
            raise StoreError(f"{folder} holds no authority: {error}", hint="restore it from the backup") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._certificate.public_key():
            raise StoreError(
                f"the key and the certificate in {folder} do not belong together", hint="restore both from the backup"
            )
        self._key = key

    @property
    def pem(self) -> str:
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate; an invitation carries it."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def _make(self) -> None:
        """With the key that is there already, where a certificate alone was lost: what it gave counts on."""
        key = self._held() or ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgekit fleet authority")])
        made = (
            _builder(name, key.public_key(), name, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        write_private(self.key_path, private_pem(key))
        write_private(self.certificate_path, made.public_bytes(serialization.Encoding.PEM))

    def _held(self) -> ec.EllipticCurvePrivateKey | None:
        if not self.key_path.exists():
            return None
        found = serialization.load_pem_private_key(read_private(self.key_path), None)
        return found if isinstance(found, ec.EllipticCurvePrivateKey) else None

    def issue_device(self, request: str, device: str) -> Issued:
        """A client certificate for the key of `request`; what names it asks for does not matter. Raises UsageError."""
        try:
            asked = x509.load_pem_x509_csr(request.encode())
            signed, public = asked.is_signature_valid, asked.public_key()
        except (ValueError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
            raise UsageError(f"no PEM certificate request: {error}", hint="enroll again") from error
        if not signed or not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
            raise UsageError("the certificate request is not signed by a key on P-256", hint="enroll again")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
        return self._issue(name, public, DEVICE_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def issue_service(self, hosts: tuple[str, ...]) -> tuple[str, str]:
        """(certificate, key), PEM, for a service reached by these names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgekit fleet")])
        issued = self._issue(name, key.public_key(), SERVICE_DAYS, ExtendedKeyUsageOID.SERVER_AUTH, hosts)
        return issued.pem, private_pem(key).decode()

    def _issue(
        self,
        name: x509.Name,
        public: ec.EllipticCurvePublicKey,
        days: int,
        purpose: x509.ObjectIdentifier,
        hosts: tuple[str, ...],
    ) -> Issued:
        builder = (
            _builder(name, public, self._certificate.subject, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        made = builder.sign(self._key, hashes.SHA256())
        pem = made.public_bytes(serialization.Encoding.PEM).decode()
        return Issued(pem, f"{made.serial_number:x}", made.not_valid_after_utc.timestamp())


def certificate_request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """PKCS 10, PEM; made on a device."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def first_certificate(pem: str) -> tuple[str, str]:
    """The first certificate of a text, and nothing else that may stand there: PEM, and its SHA-256. Raises
    ValueError."""
    try:
        found = x509.load_pem_x509_certificate(pem.encode())
    except x509.InvalidVersion as error:
        raise ValueError(str(error)) from error
    return found.public_bytes(serialization.Encoding.PEM).decode(), found.fingerprint(hashes.SHA256()).hex()


def span_of(pem: bytes) -> tuple[float, float]:
    """From when to when a certificate counts, in seconds since 1970. Raises ValueError."""
    certificate = x509.load_pem_x509_certificate(pem)
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    name: x509.Name, public: ec.EllipticCurvePublicKey, issuer: x509.Name, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )

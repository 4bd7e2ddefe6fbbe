from __future__ import annotations

import base64
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgekit.errors import StoreError, UsageError
from edgekit.fleet.trust.authority import (
    DEVICE_DAYS,
    Authority,
    certificate_request,
    first_certificate,
    span_of,
)
from edgekit.fleet.trust.tokens import PREFIXES, hash_token, new_token, pin_of, secret_of

KEY = ec.generate_private_key(ec.SECP256R1())


def test_a_device_gets_a_short_lived_certificate_for_clients_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue_device(certificate_request(KEY, "whatever it asks for"), "the-device")
    made = x509.load_pem_x509_certificate(issued.pem.encode())
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pem.encode()))
    assert made.subject.rfc4514_string() == "CN=the-device"
    assert made.public_key() == KEY.public_key()
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    starts_at, ends_at = span_of(issued.pem.encode())
    assert ends_at - starts_at == pytest.approx(DEVICE_DAYS * 86_400, abs=600)
    assert (issued.ends_at, issued.serial) == (ends_at, f"{made.serial_number:x}")


def test_the_same_folder_is_the_same_authority(tmp_path: Path) -> None:
    first = Authority(tmp_path)
    assert Authority(tmp_path).fingerprint == first.fingerprint == first_certificate(first.pem)[1]
    for name in ("authority.key", "authority.pem"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_processes_that_start_together_make_one_authority(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(Authority(tmp_path).fingerprint)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    Authority(tmp_path)
    (tmp_path / "authority.key").chmod(0o644)
    with pytest.raises(StoreError, match="may be read by others"):
        Authority(tmp_path)


def test_halves_of_different_authorities_are_refused(tmp_path: Path) -> None:
    Authority(tmp_path / "a")
    Authority(tmp_path / "b")
    (tmp_path / "b" / "authority.pem").write_bytes((tmp_path / "a" / "authority.pem").read_bytes())
    with pytest.raises(StoreError, match="do not belong together"):
        Authority(tmp_path / "b")


def test_a_damaged_authority_is_told(tmp_path: Path) -> None:
    Authority(tmp_path)
    (tmp_path / "authority.pem").write_text("nothing")
    with pytest.raises(StoreError, match="holds no authority"):
        Authority(tmp_path)


def _request(key: object) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())  # type: ignore[arg-type]
    return made.public_bytes(Encoding.PEM).decode()


def test_requests_that_cannot_be_are_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good = certificate_request(KEY, "x")
    lines = good.splitlines()
    torn = "\n".join([lines[0], lines[1][::-1], *lines[2:]])
    for text in ("", "nothing", good[:60], torn, authority.pem):
        with pytest.raises(UsageError):
            authority.issue_device(text, "device")
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(UsageError, match="P-256"):
            authority.issue_device(_request(key), "device")


def test_a_request_signed_by_another_key_is_refused(tmp_path: Path) -> None:
    made = x509.load_pem_x509_csr(certificate_request(KEY, "x").encode())
    raw = bytearray(made.public_bytes(Encoding.DER))
    raw[-1] ^= 1  # of the signature
    try:
        forged = x509.load_der_x509_csr(bytes(raw)).public_bytes(Encoding.PEM).decode()
    except ValueError:
        pytest.skip("the library reads no such request at all")
    with pytest.raises(UsageError):
        Authority(tmp_path).issue_device(forged, "device")


def test_the_service_is_reached_by_names_and_addresses(tmp_path: Path) -> None:
    pem, key = Authority(tmp_path).issue_service(("fleet.example", "192.0.2.7", "::1"))
    made = x509.load_pem_x509_certificate(pem.encode())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fleet.example"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "::1"]
    assert "PRIVATE KEY" in key


def test_an_invitation_carries_who_made_it() -> None:
    token = new_token("invitation")
    assert token.startswith(PREFIXES["invitation"])
    assert "." not in token
    assert (secret_of(f"{token}.abc"), pin_of(f"{token}.abc")) == (token, "abc")
    assert (secret_of(token), pin_of(token)) == (token, "")
    assert len(hash_token(token)) == 64
    assert token not in hash_token(token)


def test_of_a_text_the_first_certificate_alone_is_taken(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    assert first_certificate(f"before\n{ours.pem}{other.pem}behind") == (ours.pem, ours.fingerprint)


def _other_version(pem: str, before: bytes, after: bytes) -> str:
    head, *lines, tail = pem.splitlines()
    data = base64.b64decode("".join(lines))
    assert before in data
    return f"{head}\n{base64.encodebytes(data.replace(before, after, 1)).decode()}{tail}\n"


def test_versions_that_nobody_knows_are_refused_as_other_nonsense_is(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    request = _other_version(certificate_request(KEY, "x"), b"\x02\x01\x00", b"\x02\x01\x05")
    with pytest.raises(UsageError, match="no PEM certificate request"):
        authority.issue_device(request, "the-device")
    with pytest.raises(ValueError, match="version"):
        first_certificate(_other_version(authority.pem, b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"))


def test_a_certificate_that_was_lost_is_made_anew_with_the_key_that_is_there(tmp_path: Path) -> None:
    before = Authority(tmp_path)
    issued = before.issue_device(certificate_request(KEY, "x"), "the-device")
    before.certificate_path.unlink()
    again = x509.load_pem_x509_certificate(Authority(tmp_path).pem.encode())
    x509.load_pem_x509_certificate(issued.pem.encode()).verify_directly_issued_by(again)

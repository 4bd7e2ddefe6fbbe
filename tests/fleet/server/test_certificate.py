from __future__ import annotations

import contextlib
import logging
import ssl
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from edgekit.errors import NodeError
from edgekit.fleet.server.certificate import ServiceCertificate, own_names
from edgekit.fleet.trust.authority import SERVICE_DAYS, Authority
from tests.fleet.conftest import SettableClock

NAMES = ("127.0.0.1",)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "trust")


@pytest.fixture
def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> tuple[Path, Path]:
    made = tmp_path / "cert.pem", tmp_path / "key.pem"
    for path, text in zip(made, authority.issue_service(NAMES), strict=True):
        path.write_text(text)
    return made


def shown(context: ssl.SSLContext, authority: Authority) -> int:
    """The serial of what a client sees, over memory alone."""
    client_in, client_out, server_in, server_out = (ssl.MemoryBIO() for _ in range(4))
    verifying = ssl.create_default_context(cafile=str(authority.certificate_path))
    client = verifying.wrap_bio(client_in, client_out, server_hostname="127.0.0.1")
    server = context.wrap_bio(server_in, server_out, server_side=True)
    for _ in range(4):
        for side, its_out, others_in in ((client, client_out, server_in), (server, server_out, client_in)):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            others_in.write(its_out.read())
    found = client.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


def test_its_own_is_renewed_in_the_middle_of_its_life(authority: Authority, context: ssl.SSLContext) -> None:
    clock = SettableClock(time.time())
    found = ServiceCertificate(authority, None, NAMES, clock)
    context.load_cert_chain(found.chain, found.key)
    first = shown(context, authority)
    assert not found.look(context)
    clock.advance(0.49 * SERVICE_DAYS * 86_400)
    assert not found.look(context)
    assert shown(context, authority) == first
    clock.advance(0.02 * SERVICE_DAYS * 86_400)
    assert found.look(context)
    assert shown(context, authority) != first
    assert found.chain.stat().st_mode & 0o777 == 0o600


def test_files_that_were_changed_are_shown(
    authority: Authority, files: tuple[Path, Path], context: ssl.SSLContext
) -> None:
    found = ServiceCertificate(authority, files, NAMES)
    context.load_cert_chain(*files)
    first = shown(context, authority)
    assert not found.look(context)
    for path, text in zip(files, authority.issue_service(NAMES), strict=True):
        path.write_text(text)
    assert found.look(context)
    assert shown(context, authority) != first


def test_files_that_are_half_changed_leave_the_one_before(
    authority: Authority, files: tuple[Path, Path], context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    found = ServiceCertificate(authority, files, NAMES)
    context.load_cert_chain(*files)
    first = shown(context, authority)
    certificate, key = authority.issue_service(NAMES)
    files[0].write_text(certificate)
    with caplog.at_level(logging.ERROR, "edgekit"):
        assert not found.look(context)
    assert "stays the one before" in caplog.text
    assert shown(context, authority) == first
    files[1].write_text(key)
    assert found.look(context)
    assert shown(context, authority) != first
    files[0].unlink()
    assert not found.look(context)


def test_a_key_with_a_password_is_told_instead_of_asked_for(authority: Authority, files: tuple[Path, Path]) -> None:
    key = serialization.load_pem_private_key(files[1].read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    files[1].write_bytes(locked)
    with pytest.raises(NodeError, match="certificate cannot be used"):
        ServiceCertificate(authority, files, NAMES)


def test_files_that_are_not_there_are_told(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="certificate cannot be used"):
        ServiceCertificate(authority, (tmp_path / "none", tmp_path / "none"), NAMES)


def test_names_are_those_given_and_the_hosts_own() -> None:
    found = own_names("0.0.0.0", ("fleet.example",))
    assert found[0] == "fleet.example"
    assert {"localhost", "127.0.0.1", "::1"} < set(found)
    assert "0.0.0.0" not in found

"""Spans from a node that answers, refuses, keeps none, or is none."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgekit.errors import AuthenticationError, NodeError, RemoteError, UnreachableError, UsageError
from edgekit.runtimes.tracing.fetch import NodeAddress, fetch


@contextmanager
def answering(
    status: int, body: bytes, headers: dict[str, str] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing on stderr."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *arguments: None  # type: ignore[method-assign]  # a caller that breaks off
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_spans_of_an_answer_are_read_and_damaged_ones_counted(make) -> None:
    span = make("infer", 0, 5, None, "edge")
    with answering(200, b'{"spans": [%s, {"name": 1}]}' % span.model_dump_json().encode()) as url:
        reading = fetch(NodeAddress(url))
    assert (reading.spans, reading.damaged) == ((span,), 1)


@pytest.mark.parametrize(
    ("status", "body", "error", "said", "hint"),
    [
        (401, b'{"error": "no token"}', AuthenticationError, "no token", "--token-file"),
        (404, b'{"error": "Not Found"}', RemoteError, "Not Found", "--trace FILE"),
        (500, b"<html>", RemoteError, "HTTP 500", ""),
        (200, b"<html>", UnreachableError, "Expecting value", "REST port"),
        (200, b'{"models": []}', RemoteError, "holds no spans", "REST port"),
        (200, b"[]", RemoteError, "holds no spans", "REST port"),
    ],
)
def test_other_answers_are_errors_that_say_what_to_do(status, body, error, said, hint) -> None:
    with answering(status, body) as url, pytest.raises(error, match=said) as caught:
        fetch(NodeAddress(url))
    assert type(caught.value) is error and hint in caught.value.hint and url in caught.value.message


def test_a_token_follows_no_redirection() -> None:
    with (
        answering(200, b'{"spans": []}') as elsewhere,
        answering(302, b"", {"Location": elsewhere}) as url,
        pytest.raises(RemoteError, match="HTTP 302"),
    ):
        fetch(NodeAddress(url, "secret"))


def test_nothing_that_listens_is_unreachable(free_port: int) -> None:
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{free_port}"):
        fetch(NodeAddress(f"http://127.0.0.1:{free_port}"))


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:8102", "127.0.0.1:8101", "http://", "http://edge:8101/v2/traces"])
def test_another_kind_of_address_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="no address of a node"):
        NodeAddress(url)


def test_a_token_is_not_sent_in_the_clear() -> None:
    with pytest.raises(UsageError, match="in the clear"):
        NodeAddress("http://edge:8101", "secret")
    NodeAddress("https://edge:8101", "secret")
    NodeAddress("http://127.0.0.1:8101", "secret")


def test_an_authority_that_cannot_be_read_is_a_node_error(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"none\.pem"):
        fetch(NodeAddress("https://127.0.0.1:1", ca=tmp_path / "none.pem"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    folder, now = tmp_path_factory.mktemp("certificate"), datetime.now(timezone.utc)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    formats = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*formats))
    return folder / "cert.pem", folder / "key.pem"


def test_over_tls_the_node_is_known_by_its_authority_and_the_caller_by_a_certificate(
    certificate: tuple[Path, Path],
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with answering(200, b'{"spans": []}', tls=tls) as url:
        assert fetch(NodeAddress(url, "secret", certificate[0])).spans == ()
        with pytest.raises(AuthenticationError, match="certificate") as caught:
            fetch(NodeAddress(url, "secret"))
        assert "--ca" in caught.value.hint
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(certificate[0])
    with answering(200, b'{"spans": []}', tls=tls) as url:
        assert fetch(NodeAddress(url, "", certificate[0], certificate)).spans == ()
        with pytest.raises(UnreachableError):
            fetch(NodeAddress(url, "", certificate[0]))

"""Tokens, certificates, and where a node dares to listen."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgekit.errors import AuthenticationError, NodeError, RemoteError, UsageError
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import ClientOptions, NodeClient
from edgekit.runtimes.server import Node, NodeOptions, Security, read_token

CALL = InferCall("net.middle", {"scaled": np.zeros((1, 6), np.float32)})


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path
    secret: Any
    subject: x509.Certificate

    @property
    def files(self) -> tuple[Path, Path]:
        return self.certificate, self.key


def issue(folder: Path, name: str, signer: Pair | None = None, *, days: float = 1.0, age_days: float = 0.1) -> Pair:
    """A certificate for 127.0.0.1, valid from `age_days` ago to `days` from now; its own authority without a signer."""
    secret = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.subject.subject if signer else subject)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=age_days))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(secret.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((signer.secret if signer else secret).public_key()),
            False,
        )
        .sign(signer.secret if signer else secret, hashes.SHA256())
    )
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return Pair(certificate, key, secret, built)


@dataclass(frozen=True)
class Authority:
    folder: Path
    root: Pair
    node: Pair
    caller: Pair

    def client(self, *, with_certificate: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.root.certificate))
        if with_certificate:
            context.load_cert_chain(*self.caller.files)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("certificates")
    root = issue(folder, "root")
    return Authority(folder, root, issue(folder, "node", root), issue(folder, "caller", root))


def test_a_token_is_asked_for_over_both_protocols(split_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(split_bundle, tier="edge", port=0, security=Security("s3cret"))
    for given, status in ((None, 401), ("Bearer wrong", 401), ("s3cret", 401), ("Bearer s3cret", 200)):
        headers = {"Authorization": given} if given else {}
        answer = httpx.get(f"{node.rest_url}/v2/models/net.middle", headers=headers)
        assert answer.status_code == status
        assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)
    for token in ("", "wrong"):
        with (
            NodeClient(node.grpc_url, ClientOptions(token)) as client,
            pytest.raises(AuthenticationError, match="token"),
        ):
            client.infer(CALL)
    with NodeClient(node.grpc_url, ClientOptions("s3cret")) as client:
        assert client.infer(CALL).tensors["shifted"].shape == (1, 6)


def test_health_needs_no_token_and_metrics_do(split_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(split_bundle, tier="edge", port=0, security=Security("s3cret"))
    assert httpx.get(f"{node.rest_url}/v2/health/live").status_code == 200
    assert httpx.get(f"{node.rest_url}/v2/health/ready").status_code == 200
    assert httpx.get(f"{node.rest_url}/metrics").status_code == 401
    with NodeClient(node.grpc_url) as client:
        assert client.call("ServerReady").ready


def test_a_wrong_token_is_refused_before_the_body_is_read(split_bundle: Path, serve: Callable[..., Node]) -> None:
    node = serve(split_bundle, tier="edge", port=0, security=Security("s3cret"), max_bytes=1024)
    answer = httpx.post(f"{node.rest_url}/v2/models/net.middle/infer", content=b"x" * 2048)
    assert answer.status_code == 401


def test_tls_on_both_ports(split_bundle: Path, serve: Callable[..., Node], authority: Authority) -> None:
    node = serve(split_bundle, tier="edge", port=0, security=Security("", authority.node.files))
    assert node.grpc_url.startswith("grpcs://") and node.rest_url.startswith("https://")
    with NodeClient(node.grpc_url, ClientOptions(ca=authority.root.certificate)) as client:
        client.infer(CALL)
    assert httpx.get(f"{node.rest_url}/v2", verify=authority.client()).status_code == 200


def test_a_node_of_an_unknown_authority_is_not_trusted(
    split_bundle: Path, serve: Callable[..., Node], authority: Authority, tmp_path: Path
) -> None:
    node = serve(split_bundle, tier="edge", security=Security("", authority.node.files))
    stranger = ClientOptions(ca=issue(tmp_path, "stranger").certificate)
    with NodeClient(node.grpc_url, stranger) as client, pytest.raises(AuthenticationError, match="CERTIFICATE"):
        client.infer(CALL)


def test_mutual_tls_refuses_callers_without_a_certificate(
    split_bundle: Path, serve: Callable[..., Node], authority: Authority
) -> None:
    security = Security("", authority.node.files, authority.root.certificate)
    node = serve(split_bundle, tier="edge", port=0, security=security)
    known = ClientOptions(ca=authority.root.certificate, certificate=authority.caller.files)
    with NodeClient(node.grpc_url, known) as client:
        client.infer(CALL)
    assert httpx.get(f"{node.rest_url}/v2", verify=authority.client(with_certificate=True)).status_code == 200
    without = ClientOptions(ca=authority.root.certificate)
    with NodeClient(node.grpc_url, without) as client, pytest.raises(RemoteError, match="certificate"):
        client.infer(CALL)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{node.rest_url}/v2", verify=authority.client())


def test_an_expired_certificate_is_an_authentication_error_for_the_caller(authority: Authority, tmp_path: Path) -> None:
    """A node does not start with one (below); this one runs out while its server runs."""
    expired = issue(tmp_path, "expired", authority.root, days=-1, age_days=2)
    server = grpc.server(None, options=[("grpc.so_reuseport", 0)])
    credentials = grpc.ssl_server_credentials([(expired.key.read_bytes(), expired.certificate.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        options = ClientOptions(ca=authority.root.certificate)
        client = NodeClient(f"grpcs://127.0.0.1:{port}", options)
        with client, pytest.raises(AuthenticationError, match="certificate has expired"):
            client.call("ServerLive", timeout_s=10)
    finally:
        server.stop(None)


def test_a_node_does_not_start_with_an_expired_certificate(
    split_bundle: Path, authority: Authority, tmp_path: Path
) -> None:
    expired = issue(tmp_path, "expired", authority.root, days=-1, age_days=2)
    with pytest.raises(NodeError, match="is valid from"):
        Node([split_bundle], NodeOptions(security=Security("", expired.files)))


def test_files_that_are_no_certificate_or_another_key_are_refused(
    split_bundle: Path, authority: Authority, tmp_path: Path
) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("hello")
    node, caller = authority.node, authority.caller
    for pair, what in (
        ((junk, node.key), "no PEM certificate"),
        ((node.certificate, junk), "no PEM certificate"),
        ((node.certificate, caller.key), "is not that of"),
    ):
        with pytest.raises(NodeError, match=what):
            Node([split_bundle], NodeOptions(security=Security("", pair)))
    with pytest.raises(UsageError, match="cannot read"):
        Node([split_bundle], NodeOptions(security=Security("", (tmp_path / "missing", node.key))))
    with pytest.raises(NodeError, match="no PEM certificate"):
        Node([split_bundle], NodeOptions(security=Security("", node.files, junk)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "node.example"])
def test_other_addresses_than_loopback_need_both_token_and_tls(
    split_bundle: Path, authority: Authority, host: str
) -> None:
    for security, missing in (
        (Security(), "--token-file and --tls"),
        (Security("s3cret"), "without --tls"),
        (Security("", authority.node.files), "without --token-file"),
    ):
        with pytest.raises(NodeError, match=missing):
            Node([split_bundle], NodeOptions(host=host, security=security))
    Security("s3cret", authority.node.files).check_host(host)


def test_a_client_ca_without_tls_is_refused(authority: Authority) -> None:
    with pytest.raises(NodeError, match="--client-ca without --tls"):
        Security("", None, authority.root.certificate).check_host("127.0.0.1")


def test_a_token_is_never_sent_in_the_clear_to_others() -> None:
    with pytest.raises(UsageError, match="in the clear"):
        NodeClient("grpc://192.0.2.1:8102", ClientOptions("s3cret"))


@pytest.mark.parametrize("content,what", [(b"", "0 words"), (b"a b", "2 words"), (b"\xff", "ASCII")])
def test_a_token_file_holds_one_word(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=what):
        read_token(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_token(tmp_path / "missing")
    path.write_text("s3cret\n")
    assert read_token(path) == "s3cret"


def test_edge_and_cloud_meet_over_tls_with_a_token(
    split_bundle: Path, serve: Callable[..., Node], authority: Authority
) -> None:
    security = Security("s3cret", authority.node.files, authority.root.certificate)
    cloud = serve(split_bundle, tier="cloud", security=security)
    to_cloud = ClientOptions("s3cret", authority.root.certificate, authority.caller.files)
    edge = serve(split_bundle, tier="edge", upstream=cloud.grpc_url, upstream_client=to_cloud)
    with NodeClient(edge.grpc_url) as client:
        answer = client.infer(InferCall("net.tail", {"shifted": np.zeros((1, 6), np.float32)}))
    assert answer.tensors["scores"].shape == (1, 3)

"""Listening: uvicorn over one address, with TLS that asks for clients' certificates and tells the routes of them."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgekit.errors import NodeError
from edgekit.fleet.server.app import create_app
from edgekit.fleet.server.asking import TLS
from edgekit.fleet.service import FleetService
from edgekit.runtimes.loopback import is_loopback

KEEP_ALIVE_S = 75  # longer than a sync waits


@dataclass(frozen=True)
class Listening:
    """`certificate`: (chain, key) in PEM files; () takes one of the fleet's own authority. None: no TLS."""

    host: str = "127.0.0.1"
    port: int = 8080
    tls: bool = False
    certificate: tuple[Path, Path] | None = None

    def check(self) -> None:
        """Raises NodeError for an address that others reach, without TLS."""
        if not self.tls and not is_loopback(self.host):
            raise NodeError(
                f"listening on {self.host} without TLS: tokens could be read on the way",
                hint="give --tls, or listen on 127.0.0.1",
            )


class TlsProtocol(HttpToolsProtocol):  # type: ignore[misc]
    """Tells the application whose certificate the connection was opened with."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        found = self.transport.get_extra_info("ssl_object")
        if found is not None:
            peer = found.getpeercert() or {}
            serial = str(peer.get("serialNumber", "")).lower().lstrip("0")
            self.scope.setdefault("extensions", {})[TLS] = {"client_serial": serial}


def open_socket(host: str, port: int) -> socket.socket:
    """Raises NodeError where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Naming the protocol lets asyncio set TCP_NODELAY on what it accepts.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise NodeError(f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another --port") from error
    listener.setblocking(False)
    return listener


def make_server(service: FleetService, listening: Listening) -> uvicorn.Server:
    """Raises NodeError."""
    listening.check()
    tls: dict[str, Any] = {}
    if listening.tls:
        chain, key = listening.certificate or own_certificate(service, listening.host)
        authority = service.core.authority.certificate_path
        tls = {
            "ssl_certfile": str(chain),
            "ssl_keyfile": str(key),
            "ssl_ca_certs": str(authority),
            "ssl_cert_reqs": ssl.CERT_OPTIONAL,
        }
    config = uvicorn.Config(
        create_app(service),
        http=TlsProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
        **tls,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise NodeError(f"the certificate cannot be used: {error}", hint="check --tls-files") from error
    return uvicorn.Server(config)


def own_certificate(service: FleetService, host: str) -> tuple[Path, Path]:
    """From the fleet's own authority, made anew at each start."""
    from edgekit.fleet.trust.authority import write_private

    names = tuple(dict.fromkeys((host, socket.gethostname(), "localhost", "127.0.0.1")))
    pem, key = service.core.authority.issue_service(tuple(name for name in names if name not in ("0.0.0.0", "::")))
    folder = service.core.authority.certificate_path.parent
    chain_path, key_path = folder / "service.pem", folder / "service.key"
    chain_path.write_text(pem)
    write_private(key_path, key.encode())
    return chain_path, key_path

"""Listening: uvicorn over one address, with TLS that asks for clients' certificates and tells the routes of them."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from edgekit.errors import NodeError
from edgekit.fleet.server.app import create_app
from edgekit.fleet.server.asking import TLS
from edgekit.fleet.server.certificate import LOOK_EVERY_S, ServiceCertificate, own_names
from edgekit.fleet.server.door import AgentDoor
from edgekit.fleet.server.guessing import SlowGuessing
from edgekit.fleet.server.heads import BoundedHeads
from edgekit.fleet.service import FleetService
from edgekit.runtimes.host import SWITCH_INTERVAL_S, collect_all_rarely
from edgekit.runtimes.loopback import is_loopback

KEEP_ALIVE_S = 75  # longer than a sync waits
HSTS_S = 365 * 86_400
GOODBYE_S = 0.5
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL


@dataclass(frozen=True)
class Listening:
    """`certificate`: (chain, key) in PEM files; None takes one of the fleet's own authority, for `names` beside the
    host's own."""

    host: str = "127.0.0.1"
    port: int = 8080
    tls: bool = False
    certificate: tuple[Path, Path] | None = None
    names: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises NodeError for an address that others reach, without TLS."""
        if not self.tls and not is_loopback(self.host):
            raise NodeError(
                f"listening on {self.host} without TLS: tokens could be read on the way",
                hint="give --tls, or listen on 127.0.0.1",
            )


class TlsProtocol(BoundedHeads):
    """Tells the application whose certificate the connection was opened with, and whether that counts now.

    Its times are judged here at each request, not by the handshake: that would hang up without a word, which a device
    cannot tell from a service that is down.
    """

    _is_tls, _serial, _starts_at, _ends_at = False, "", 0.0, 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        found = transport.get_extra_info("ssl_object")
        if found is not None:
            peer = found.getpeercert() or {}
            self._is_tls, self._serial = True, str(peer.get("serialNumber", "")).lower().lstrip("0")
            if peer:
                self._starts_at = ssl.cert_time_to_seconds(peer["notBefore"])
                self._ends_at = ssl.cert_time_to_seconds(peer["notAfter"])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._is_tls:
            trouble = self._trouble() if self._serial else ""
            told = {"client_serial": "" if trouble else self._serial, "client_trouble": trouble}
            self.scope.setdefault("extensions", {})[TLS] = told

    def shutdown(self) -> None:
        super().shutdown()
        if self._is_tls and self.transport.is_closing():
            # The loop waits half a minute for the other side's goodbye, which one that is idle does not say.
            asyncio.get_running_loop().call_later(GOODBYE_S, self.transport.abort)

    def _trouble(self) -> str:
        now = time.time()
        if self._starts_at <= now < self._ends_at:
            return ""
        word, at = ("has ended, at", self._ends_at) if now >= self._ends_at else ("counts only from", self._starts_at)
        return f"{word} {_utc(at)}; the clock here says {_utc(now)}"


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


class _Server(uvicorn.Server):  # type: ignore[misc]
    """Shows a newer certificate in time. Ends live updates and held calls first, which else keep their connections open
    until they are cut off."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, certificate: ServiceCertificate | None) -> None:
        super().__init__(config)
        self._app, self._certificate = app, certificate
        self._look: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._look = asyncio.create_task(self._look_for_ever())

    async def _look_for_ever(self) -> None:
        while self._certificate is not None:
            await asyncio.sleep(LOOK_EVERY_S)
            self._certificate.look(self.config.ssl)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._look is not None:
            self._look.cancel()
        self._app.state.live.stop()
        self._app.state.waiters.wake_all()
        await super().shutdown(sockets)


def make_server(service: FleetService, listening: Listening) -> uvicorn.Server:
    """Raises NodeError."""
    listening.check()
    # Each system call of the event loop gives the interpreter away, and waits up to so long to have it back while the
    # leader works in its thread: Python's own 5 ms would be paid several times by each call of an agent.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    collect_all_rarely()
    tls: dict[str, Any] = {}
    certificate: ServiceCertificate | None = None
    if listening.tls:
        authority = service.core.authority
        certificate = ServiceCertificate(authority, listening.certificate, own_names(listening.host, listening.names))
        service.devices.tells_authority = listening.certificate is None
        tls = {
            "ssl_certfile": str(certificate.chain),
            "ssl_keyfile": str(certificate.key),
            "ssl_ca_certs": str(authority.certificate_path),
            "ssl_cert_reqs": ssl.CERT_OPTIONAL,
            "headers": [("Strict-Transport-Security", f"max-age={HSTS_S}")],
        }
    app = create_app(service)
    config = uvicorn.Config(
        SlowGuessing(AgentDoor(app)),
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
        if config.ssl is not None:
            config.ssl.verify_flags |= NO_CHECK_TIME
    except (OSError, ssl.SSLError) as error:
        raise NodeError(f"the certificate cannot be used: {error}", hint="check --tls-files") from error
    return _Server(config, app, certificate)

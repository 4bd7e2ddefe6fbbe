"""The REST face of a node: its application on uvicorn, in an event loop of its own thread."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from typing import Any

import uvicorn

from edgekit.errors import NodeError
from edgekit.runtimes.listening import open_socket
from edgekit.runtimes.server.engine import Engine
from edgekit.runtimes.server.http_watch import WatchedProtocol
from edgekit.runtimes.server.rest_app import RestApp
from edgekit.runtimes.server.security import Security

KEEP_ALIVE_S = 30
MAX_CONNECTIONS = 1024
MAX_HEADER_BYTES = 32 << 10


class RestFront:
    """Bound at once, serving from `start`. `workers` bounds the requests inside; beyond, the answer is 429."""

    def __init__(
        self,
        engine: Engine,
        security: Security,
        host: str,
        port: int,
        max_bytes: int,
        workers: int,
        body_timeout_s: float = 10.0,
        with_metrics: bool = True,
    ) -> None:
        """Raises NodeError where the port is taken."""
        self._security, self._body_timeout_s = security, body_timeout_s
        self._socket = open_socket(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._app = RestApp(engine, security, max_bytes, workers, body_timeout_s, with_metrics)
        self._server = uvicorn.Server(self._config())
        self._thread = threading.Thread(target=self._serve, name="edgekit-rest", daemon=True)

    def start(self) -> None:
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)

    def stop(self, grace_s: float) -> None:
        """No new connections; requests inside have `grace_s`."""
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        self._app.close()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def _config(self) -> Any:
        tls: dict[str, Any] = {}
        if self._security.certificate is not None:
            chain, key = self._security.certificate
            tls = {"ssl_certfile": str(chain), "ssl_keyfile": str(key)}
            if self._security.client_ca is not None:
                tls |= {"ssl_ca_certs": str(self._security.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        settings = uvicorn.Config(
            self._app.asgi,
            loop="asyncio",
            http=type("Protocol", (WatchedProtocol,), {"timeout_s": self._body_timeout_s}),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            **tls,
        )
        try:
            settings.load()
        except (OSError, ssl.SSLError) as error:
            self._socket.close()
            raise NodeError(f"the certificate cannot be used: {error}", hint="check --tls and --client-ca") from error
        return settings

"""A real service under TLS, in a thread of its own, for tests of every room."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.fleet.protocol.people import InvitationOrder
from edgekit.fleet.server.run import Listening, make_server
from edgekit.fleet.service import FleetService
from edgekit.runtimes.listening import open_socket
from tests.fleet.acting import ADMIN


@dataclass(frozen=True)
class Place:
    service: FleetService
    url: str

    def invite(self, device: str | None = None) -> str:
        return self.service.devices.invite(ADMIN, InvitationOrder(device=device)).token

    @property
    def ca(self) -> Path:
        return self.service.core.authority.certificate_path


@contextmanager
def serving(data: Path, certificate: tuple[Path, Path] | None = None) -> Iterator[Place]:
    service = FleetService(data)
    server = make_server(service, Listening(port=0, tls=True, certificate=certificate))
    with open_socket("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        try:
            yield Place(service, f"https://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(20)
            service.close()
    assert not thread.is_alive()

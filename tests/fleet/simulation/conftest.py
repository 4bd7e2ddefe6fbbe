"""A service that listens, for simulated devices."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit.fleet.protocol.people import InvitationOrder
from edgekit.fleet.server.run import Listening, make_server
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from edgekit.runtimes.listening import open_socket

ADMIN = Actor("ada", "admin")


@dataclass
class Served:
    service: FleetService
    url: str

    def invite(self, uses: int, **labels: str) -> str:
        return self.service.devices.invite(ADMIN, InvitationOrder(uses=uses, labels=labels)).token


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    yield from _serve(tmp_path, Listening(port=0))


@pytest.fixture
def served_tls(tmp_path: Path) -> Iterator[Served]:
    yield from _serve(tmp_path, Listening(port=0, tls=True))


def _serve(folder: Path, listening: Listening) -> Iterator[Served]:
    service = FleetService(folder / "data")
    server = make_server(service, listening)
    with open_socket(listening.host, 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            for _ in range(500):
                if server.started:
                    break
                time.sleep(0.01)
            scheme = "https" if listening.tls else "http"
            yield Served(service, f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(20)
            service.close()

"""The service over HTTP, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from edgekit.fleet.server.app import create_app
from edgekit.fleet.server.run import Listening, make_server
from edgekit.fleet.service import FleetService
from edgekit.runtimes.listening import open_socket


@pytest.fixture
def served(tmp_path: Path, database_url: str) -> Iterator[FleetService]:
    service = FleetService(tmp_path / "data", database_url)
    yield service
    service.close()


@pytest.fixture
def token(served: FleetService) -> str:
    """The first admin's."""
    found = served.people.found()
    assert found is not None
    return found


@pytest.fixture
def http(served: FleetService, token: str) -> Iterator[TestClient]:
    with TestClient(
        create_app(served), base_url="http://127.0.0.1", headers={"Authorization": f"Bearer {token}"}
    ) as client:
        yield client


@pytest.fixture
def url(served: FleetService) -> Iterator[str]:
    """The address of the service on a real server, in a thread of its own."""
    server = make_server(served, Listening(port=0))
    with open_socket("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        assert server.started
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()

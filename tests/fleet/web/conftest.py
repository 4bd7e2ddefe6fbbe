"""The page over a fresh service, in this process, at the time of `clock`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from edgekit.fleet.protocol.people import Role
from edgekit.fleet.server.app import create_app
from edgekit.fleet.service import FleetService
from tests.fleet.conftest import SettableClock
from tests.fleet.web.scene import Visitor, person


@pytest.fixture
def service(tmp_path: Path, database_url: str, clock: SettableClock) -> Iterator[FleetService]:
    made = FleetService(tmp_path / "data", database_url, now=clock)
    yield made
    made.close()


@pytest.fixture
def token(service: FleetService) -> str:
    found = service.people.found()
    assert found is not None
    return found


@pytest.fixture
def app(service: FleetService, token: str) -> FastAPI:
    return create_app(service, advance_every_s=3600)


@pytest.fixture
def stranger(app: FastAPI, service: FleetService) -> Iterator[Visitor]:
    """Nobody yet. The application has led once, and does not again while the test does."""
    with TestClient(app, base_url="http://127.0.0.1") as client:
        ends_at = time.monotonic() + 20
        while not service.lease.is_held() and time.monotonic() < ends_at:
            time.sleep(0.005)
        yield Visitor(client)


@pytest.fixture
def admin(stranger: Visitor, token: str) -> Visitor:
    assert stranger.sign_in(token).status_code == 303
    return stranger


@pytest.fixture
def somebody(app: FastAPI, service: FleetService, stranger: Visitor) -> Iterator[Callable[[Role], Visitor]]:
    """Signs in a new person of a role, in a browser of its own."""
    with ExitStack() as stack:

        def make(role: Role) -> Visitor:
            # The application has been started by `stranger`; a client without `with` does not start it again.
            client = TestClient(app, base_url="http://127.0.0.1")
            stack.callback(client.close)
            visitor = Visitor(client)
            assert visitor.sign_in(person(service, f"the-{role}", role)).status_code == 303
            return visitor

        yield make

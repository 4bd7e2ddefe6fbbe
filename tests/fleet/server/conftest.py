"""The service over HTTP, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from edgekit.fleet.server.app import create_app
from edgekit.fleet.service import FleetService


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FleetService]:
    service = FleetService(tmp_path / "data")
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

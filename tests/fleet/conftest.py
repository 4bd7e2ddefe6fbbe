"""What the fleet's tests stand on: a clock that a test sets, a service on either database, a real PostgreSQL server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fleet.postgresql import Server, why_not

if TYPE_CHECKING:
    from edgekit.fleet.service import FleetService
    from edgekit.fleet.service.people import Actor

_names = itertools.count(1)


@dataclass
class SettableClock:
    """Call it for the time; `advance` it."""

    time: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> float:
        self.time += seconds
        return self.time


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """One server for all tests of this process; `stop` and `start` it only in tests that end with it running."""
    pytest.importorskip("psycopg", reason='psycopg is not installed: pip install "edgekit[postgresql]"')
    reason = why_not()
    if reason:
        pytest.skip(reason)
    server = Server()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def empty_postgresql_url(postgresql: Server) -> Iterator[str]:
    """A database of its own, without tables."""
    yield from _database(postgresql, "template0")


@pytest.fixture
def postgresql_url(postgresql: Server, made_postgresql: str) -> Iterator[str]:
    """A database of its own, with the tables."""
    yield from _database(postgresql, made_postgresql)


@pytest.fixture(scope="session")
def made_postgresql(postgresql: Server) -> str:
    """The name of a database with the tables, that others begin as: migrations take longer than a copy."""
    from edgekit.fleet.store import Database

    made = Database(postgresql.make_database("made"))
    made.create()
    made.close()
    return "made"


def _database(server: Server, template: str) -> Iterator[str]:
    name = f"fleet{next(_names)}"
    yield server.make_database(name, template)
    server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database of either kind: the test runs twice."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fleet.db'}"
    found: str = request.getfixturevalue("postgresql_url")
    return found


@pytest.fixture
def fleet(database_url: str, tmp_path: Path, clock: SettableClock) -> Iterator[FleetService]:
    """The service over a fresh folder and a fresh database of either kind, at the time of `clock`."""
    from edgekit.fleet.service import FleetService

    service = FleetService(tmp_path / "data", database_url, now=clock)
    yield service
    service.close()


@pytest.fixture
def admin() -> Actor:
    from edgekit.fleet.service.people import Actor

    return Actor("ada", "admin")

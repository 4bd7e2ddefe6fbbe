"""A database that goes away, fills up or may not be written: clear errors, nothing half done, and back to work."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, make_url, select, text
from sqlalchemy.exc import OperationalError

from edgekit.errors import StoreError
from edgekit.fleet.protocol.people import PersonOrder
from edgekit.fleet.server import create_app
from edgekit.fleet.server.door import AgentDoor
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store import Database
from edgekit.fleet.store import database as database_module
from edgekit.fleet.store.failures import translated
from edgekit.fleet.store.tables import Event, Person, WindowRow
from tests.fleet.acting import enroll, says, window
from tests.fleet.postgresql import Server
from tests.fleet.store.conftest import fill


def names(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Person.name).order_by(Person.name)))


def person(name: str) -> Person:
    return Person(name=name, role="viewer", token_hash=name, created_at=0.0)


@pytest.fixture
def on_postgresql(postgresql_url: str) -> Iterator[Database]:
    database = Database(postgresql_url)
    database.create()
    yield database
    database.close()


def test_a_server_that_goes_down_and_comes_back_loses_nothing(on_postgresql: Database, postgresql: Server) -> None:
    with on_postgresql.write() as session:
        session.add(person("ada"))
    postgresql.stop()
    try:
        for attempt in (on_postgresql.read, on_postgresql.write):
            with pytest.raises(StoreError, match="cannot be used") as caught, attempt() as session:
                session.scalar(select(Person.name))
            assert "is the database running" in caught.value.hint
    finally:
        postgresql.start()
    assert names(on_postgresql) == ["ada"]
    with on_postgresql.write() as session:
        session.add(person("bob"))
    assert names(on_postgresql) == ["ada", "bob"]


@pytest.mark.parametrize("wrong", [{"database": "none-such"}, {"username": "nobody-here"}])
def test_a_name_that_the_server_does_not_know_is_told_apart_from_one_that_is_down(
    postgresql_url: str, wrong: dict[str, str]
) -> None:
    database = Database(make_url(postgresql_url).set(**wrong).render_as_string(hide_password=False))
    try:
        with pytest.raises(StoreError, match=r"refuses to be used.*does not exist") as caught:
            database.create()
    finally:
        database.close()
    assert "--db" in caught.value.hint and "running" not in caught.value.hint


def test_a_server_that_wants_a_password_is_told_apart_from_one_that_is_down() -> None:
    said = 'connection to server at "127.0.0.1", port 5432 failed: fe_sendauth: no password supplied'
    found = translated(OperationalError("", None, Exception(said)))
    assert found is not None and "no password supplied" in found.message
    assert "~/.pgpass" in found.hint and "running" not in found.hint


def test_a_change_in_the_middle_of_which_the_server_dies_is_not_there(
    on_postgresql: Database, postgresql: Server
) -> None:
    try:
        with pytest.raises(StoreError, match="cannot be used"), on_postgresql.write() as session:
            session.add(person("ada"))
            session.flush()
            postgresql.stop()
            session.add(person("bob"))
    finally:
        postgresql.start()
    assert names(on_postgresql) == []


def test_a_connection_that_breaks_at_the_end_of_a_change_is_told_as_what_it_is(
    on_postgresql: Database, postgresql: Server
) -> None:
    """The server may have stored it: nobody on this side can know."""
    try:
        with pytest.raises(StoreError, match="while a change was stored") as caught, on_postgresql.write() as session:
            session.add(person("ada"))
            session.flush()
            postgresql.stop()
    finally:
        postgresql.start()
    assert "look before you try again" in caught.value.hint
    assert not caught.value.again


def test_requests_are_told_503_and_served_again_afterwards(
    postgresql_url: str, postgresql: Server, tmp_path: Path, admin: Actor
) -> None:
    service = FleetService(tmp_path, postgresql_url)
    token = service.people.found()
    with TestClient(create_app(service, advance_every_s=0.05), headers={"Authorization": f"Bearer {token}"}) as client:
        assert client.get("/v1/overview").status_code == 200
        postgresql.stop()
        try:
            answers = [client.get("/v1/overview"), client.get("/v1/health")]
            answers.append(client.post("/v1/people", json={"name": "bob", "role": "viewer"}))
        finally:
            postgresql.start()
        for answer in answers:
            assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
            assert answer.json()["kind"] == "StoreError"
        assert client.get("/v1/health").status_code == 200
        assert client.post("/v1/people", json={"name": "bob", "role": "viewer"}).status_code == 201
    assert [one.name for one in service.people.all()] == ["admin", "bob"]
    service.close()


def test_what_an_agent_says_while_the_server_is_down_is_stored_when_it_says_it_again(
    postgresql_url: str, postgresql: Server, tmp_path: Path
) -> None:
    service = FleetService(tmp_path, postgresql_url)
    enrolled = enroll(service, "pi")
    body = says(None, *(window(number, "a" * 64, 1.0) for number in range(3))).model_dump_json()
    headers = {"Authorization": f"Bearer {enrolled.token}"}
    with TestClient(AgentDoor(create_app(service)), base_url="http://127.0.0.1", headers=headers) as client:
        postgresql.stop()
        try:
            down = client.post("/v1/agent/sync", content=body)
        finally:
            postgresql.start()
        assert down.status_code == 503 and int(down.headers["Retry-After"]) > 0
        assert "taken" not in down.json()  # nothing is acknowledged
        assert client.post("/v1/agent/sync", content=body).json()["taken"] == 2
        assert client.post("/v1/agent/sync", content=body).json()["taken"] == 2
    with service.database.read() as session:
        assert list(session.scalars(select(WindowRow.sequence).order_by(WindowRow.sequence))) == [0, 1, 2]
    service.close()


def test_requests_are_told_503_while_somebody_locks_the_file_and_reads_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_MS", 100)
    service = FleetService(tmp_path)
    token = service.people.found()
    assert token is not None
    service.people.identify(token)
    with TestClient(create_app(service), headers={"Authorization": f"Bearer {token}"}) as client:
        other = sqlite3.connect(tmp_path / "fleet.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        answer = client.post("/v1/people", json={"name": "bob", "role": "viewer"})
        assert answer.status_code == 503 and "locked" in answer.json()["error"] and "Retry-After" in answer.headers
        assert client.get("/v1/overview").status_code == 200
        other.execute("ROLLBACK")
        other.close()
        assert client.post("/v1/people", json={"name": "bob", "role": "viewer"}).status_code == 201
    service.close()


def test_a_full_disk_under_sqlite_fails_the_change_and_keeps_the_rest(tiny_disk: Path, admin: Actor) -> None:
    service = FleetService(tiny_disk / "data")
    service.people.make(admin, PersonOrder(name="bob", role="viewer"))
    filler = fill(tiny_disk)
    with pytest.raises(StoreError, match=r"full|disk I/O"):
        for number in range(2_000):
            service.people.make(admin, PersonOrder(name=f"n{number}", role="viewer"))
    held = [one.name for one in service.people.all()]
    with service.database.read() as session:  # each of them whole: the person and the line of the audit log
        told = sorted(session.scalars(select(Event.subject).where(Event.action == "person.add")))
    assert told == held and "bob" in held
    filler.unlink()
    service.people.make(admin, PersonOrder(name="eve", role="viewer"))
    assert "eve" in [one.name for one in service.people.all()]
    service.close()


FULL = """
import resource, sys
from edgekit.errors import StoreError
from edgekit.fleet.store import Database
from edgekit.fleet.store import database as database_module
from edgekit.fleet.store.tables import Person
database = Database(sys.argv[1])
database.create()
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
stored = 0
try:
    for number in range(5000):
        with database.write() as session:
            session.add(Person(name=f"{number:05}", role="x", token_hash=f"{number}", created_at=0.0))
            session.add(Person(name=f"{number:05}b" + "x" * 900, role="x", token_hash=f"b{number}", created_at=0.0))
        stored += 1
except StoreError as error:
    print(stored, error.message)
"""


def test_a_file_that_may_not_grow_fails_the_change_and_keeps_the_rest(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    done = subprocess.run([sys.executable, "-c", FULL, url], capture_output=True, text=True, timeout=60)
    stored, _, message = done.stdout.partition(" ")
    assert message.startswith("the database"), done.stderr
    database = Database(url)
    assert len(names(database)) == 2 * int(stored) > 0
    with database.write() as session:
        session.add(person("eve"))
    database.close()


def test_a_full_disk_under_postgresql_fails_the_change_and_keeps_the_rest(
    on_postgresql: Database, postgresql: Server, tiny_disk: Path
) -> None:
    place = tiny_disk / "space"
    place.mkdir()
    name = str(on_postgresql.url.database)
    on_postgresql.close()
    engine = create_engine(on_postgresql.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE TABLESPACE tiny LOCATION '{postgresql.own(place)}'"))
        connection.execute(text(f"ALTER DATABASE {name} SET TABLESPACE tiny"))
    try:
        filler = fill(tiny_disk)
        with pytest.raises(StoreError, match="is full") as caught, on_postgresql.write() as session:
            session.add_all(person(f"{number}" + "x" * 50) for number in range(4_000))
        assert "make room" in caught.value.hint
        assert names(on_postgresql) == []
        filler.unlink()
        with on_postgresql.write() as session:
            session.add(person("ada"))
        assert names(on_postgresql) == ["ada"]
    finally:
        on_postgresql.close()
        with engine.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} SET TABLESPACE pg_default"))
            connection.execute(text("DROP TABLESPACE tiny"))
        engine.dispose()


def test_a_postgresql_that_may_not_be_written_is_read_all_the_same(on_postgresql: Database) -> None:
    with on_postgresql.write() as session:
        session.add(person("ada"))
        session.execute(text(f"ALTER DATABASE {on_postgresql.url.database} SET default_transaction_read_only = on"))
    on_postgresql.close()
    with pytest.raises(StoreError, match="is read-only"), on_postgresql.write() as session:
        session.add(person("bob"))
    assert names(on_postgresql) == ["ada"]


def test_a_sqlite_file_that_may_not_be_written_is_read_all_the_same(tiny_disk: Path) -> None:
    database = Database(f"sqlite:///{tiny_disk / 'fleet.db'}")
    database.create()
    with database.write() as session:
        session.add(person("ada"))
    database.close()
    (tiny_disk / "fleet.db").chmod(0o444)
    url = f"sqlite:///file:{tiny_disk / 'fleet.db'}?mode=ro&uri=true"
    reading = Database(url)
    with pytest.raises(StoreError, match="is read-only"), reading.write() as session:
        session.add(person("bob"))
    assert names(reading) == ["ada"]
    reading.close()

"""Revisions and tables stay equal, and older databases come to the newest schema or stay as they are."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, create_engine, inspect, text

from edgekit.errors import StoreError
from edgekit.fleet.store import Database, schema
from edgekit.fleet.store import database as database_module
from edgekit.fleet.store.schema import current, head, revisions, upgrade
from edgekit.fleet.store.tables import Base

NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{before}"


def upgrade() -> None:
    {body}
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database without tables, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fleet.db'}"
    found: str = request.getfixturevalue("empty_postgresql_url")
    return found


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    found = Database(database_url)
    yield found
    found.close()


@pytest.fixture
def more_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the revisions, to which a test may add."""
    copy = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(schema, "MIGRATIONS", copy)
    revisions.cache_clear()
    yield copy
    revisions.cache_clear()


def add_revision(folder: Path, *body: str) -> None:
    before = head()
    (folder / "versions" / "r9999_next.py").write_text(NEXT.format(before=before, body="\n    ".join(body)))
    revisions.cache_clear()


def fill_first(connection: Connection) -> None:
    """A row in every table of the first schema, by its own columns."""
    tables = MetaData()
    tables.reflect(connection)
    kinds = {"INTEGER": 1, "BIGINT": 1, "FLOAT": 1.5, "DOUBLE PRECISION": 1.5, "JSON": {"board": "rpi4"}}
    kinds["JSONB"] = kinds["JSON"]
    for table in tables.sorted_tables:
        if table.name in (schema.VERSION_TABLE, "clock"):
            continue
        row = {one.name: kinds.get(str(one.type), "a") for one in table.columns}
        connection.execute(table.insert().values(row))


def schema_of(database: Database) -> dict[str, list[str]]:
    with database.engine.connect() as connection:
        found = inspect(connection)
        return {name: sorted(one["name"] for one in found.get_columns(name)) for name in found.get_table_names()}


def test_revisions_make_exactly_the_tables(database: Database) -> None:
    database.create()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []
        assert current(connection) == head()


def test_revisions_are_one_line_from_the_first() -> None:
    assert len(revisions().get_heads()) == 1
    assert [one.revision for one in revisions().walk_revisions()][-1] == "0001"


def test_the_first_schema_with_rows_comes_to_the_newest_and_keeps_them(database: Database) -> None:
    upgrade(database.engine, "0001")
    with database.engine.begin() as connection:
        fill_first(connection)
        before = {name: len(connection.execute(text(f'SELECT * FROM "{name}"')).all()) for name in _tables(connection)}
    database.create()
    with database.engine.connect() as connection:
        for name, rows in before.items():
            assert len(connection.execute(text(f'SELECT * FROM "{name}"')).all()) == rows, name
        assert current(connection) == head()
        labels = connection.execute(text("SELECT labels FROM devices")).scalar_one()
        assert (json.loads(labels) if isinstance(labels, str) else labels) == {"board": "rpi4"}
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def _tables(connection: Connection) -> list[str]:
    return [name for name in inspect(connection).get_table_names() if name != schema.VERSION_TABLE]


def test_creating_again_changes_nothing(database: Database) -> None:
    database.create()
    with database.write() as session:
        assert database.tick(session) == 1
    database.create()
    with database.write() as session:
        assert database.tick(session) == 2


def test_a_database_of_a_newer_edgekit_is_refused(database: Database) -> None:
    database.create()
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9998'"))
    with pytest.raises(StoreError, match=r"schema 9998.*newer") as caught:
        database.create()
    assert "backup" in caught.value.hint


def test_somebody_elses_tables_are_left_alone(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE invoices (id INTEGER)"))
    with pytest.raises(StoreError, match="invoices"):
        database.create()
    assert schema_of(database) == {"invoices": ["id"]}


def test_a_revision_that_fails_leaves_the_schema_as_it_was(database: Database, more_revisions: Path) -> None:
    database.create()
    before = schema_of(database)
    add_revision(
        more_revisions,
        "op.add_column('devices', sa.Column('note', sa.Text()))",
        "op.execute('DELETE FROM clock')",
        "op.execute('INSERT INTO nowhere VALUES (1)')",
    )
    with pytest.raises(StoreError, match="to 9999") as caught:
        database.create()
    assert "as it was before" in caught.value.hint
    assert schema_of(database) == before
    with database.write() as session:
        assert database.tick(session) == 1


def test_copying_a_table_keeps_the_rows_that_point_to_it(database: Database, more_revisions: Path) -> None:
    upgrade(database.engine, "0001")
    with database.engine.begin() as connection:
        fill_first(connection)
    add_revision(
        more_revisions,
        "with op.batch_alter_table('devices') as batch:",
        "    batch.alter_column('tier', type_=sa.String(40))",
    )
    database.create()
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM rollout_devices")).scalar_one() == 1
    with database.engine.begin() as connection:  # and the keys count again
        connection.execute(text("DELETE FROM devices"))
        assert connection.execute(text("SELECT count(*) FROM rollout_devices")).scalar_one() == 0


def test_a_revision_that_leaves_rows_pointing_nowhere_is_undone_on_sqlite(tmp_path: Path, more_revisions: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    upgrade(database.engine, "0001")
    with database.engine.begin() as connection:
        fill_first(connection)
    add_revision(more_revisions, "op.execute('DELETE FROM devices')")
    with pytest.raises(StoreError, match="point nowhere"):
        database.create()
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM devices")).scalar_one() == 1
    database.close()


CREATE = """
import sys
from pathlib import Path
from edgekit.fleet.store import Database, schema
from edgekit.fleet.store import database as database_module
if len(sys.argv) > 2:
    schema.MIGRATIONS = Path(sys.argv[2])
database = Database(sys.argv[1])
database.create()
database.close()
"""


def test_workers_that_start_at_once_make_the_tables_once(database: Database, database_url: str) -> None:
    running = [subprocess.Popen([sys.executable, "-c", CREATE, database_url]) for _ in range(2)]
    assert [one.wait(60) for one in running] == [0, 0]
    with database.write() as session:
        assert database.tick(session) == 1


def test_a_worker_waits_for_a_migration_however_long_it_takes(
    empty_postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database_module._POSTGRESQL, "options", "-c lock_timeout=100")
    database, other = Database(empty_postgresql_url), create_engine(empty_postgresql_url)
    starting = threading.Thread(target=database.create)
    with other.begin() as connection:  # as another worker's migration holds it
        connection.execute(text(f"SELECT pg_advisory_xact_lock({schema.ADVISORY_LOCK})"))
        starting.start()
        starting.join(0.4)
        assert starting.is_alive()
    starting.join(20)
    assert schema_of(database)["devices"]
    database.close()
    other.dispose()


def test_a_migration_that_is_killed_leaves_the_old_schema(
    database: Database, database_url: str, more_revisions: Path
) -> None:
    database.create()
    before = schema_of(database)
    reached = more_revisions / "reached"
    add_revision(
        more_revisions,
        "op.add_column('devices', sa.Column('note', sa.Text()))",
        "op.execute('UPDATE clock SET tick = 77')",
        f"__import__('pathlib').Path({str(reached)!r}).touch()",
        "__import__('time').sleep(60)",
    )
    child = subprocess.Popen([sys.executable, "-c", CREATE, database_url, str(more_revisions)])
    ends_at = time.monotonic() + 60
    while not reached.exists():
        assert child.poll() is None and time.monotonic() < ends_at
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    (more_revisions / "versions" / "r9999_next.py").unlink()
    revisions.cache_clear()
    database.create()  # the next start: nothing stands in its way
    assert schema_of(database) == before
    with database.write() as session:
        assert database.tick(session) == 1


def test_a_next_revision_is_written_from_what_differs(
    tmp_path: Path, more_revisions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy import Column, Text

    from edgekit.fleet.store.migrations import __main__ as writing

    changed = MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.sorted_tables:
        table.to_metadata(changed)
    changed.tables["devices"].append_column(Column("note", Text, server_default=""))
    with monkeypatch.context() as patch:
        patch.setattr(writing.Base, "metadata", changed)
        path = writing.write_revision("Add a note to devices")
    assert path.parent == more_revisions / "versions" and path.name.endswith("_add_a_note_to_devices.py")
    revisions.cache_clear()
    engine = create_engine(f"sqlite:///{tmp_path / 'next.db'}")
    upgrade(engine)
    assert "note" in {one["name"] for one in inspect(engine).get_columns("devices")}
    engine.dispose()

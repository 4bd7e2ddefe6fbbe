"""Which schema a database has, and how it comes to the newest: all revisions in one transaction, or none.

Both databases change tables within a transaction, so that a migration that is interrupted at any point leaves the
schema and the rows as they were. Workers that start at the same time wait for the first of them.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, inspect, text
from sqlalchemy.exc import DBAPIError

from edgekit.errors import StoreError

logger = logging.getLogger("edgekit")

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "alembic_version"
ADVISORY_LOCK = 0x65_64_67_65  # "edge"; of the migrations of this database

_one_at_a_time = threading.Lock()  # Alembic keeps the operations of a revision in a module


@functools.cache
def revisions() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "r%%(rev)s_%%(slug)s")
    return ScriptDirectory.from_config(config)


def head() -> str:
    """The newest revision."""
    found = revisions().get_current_head()
    assert found is not None
    return found


def known_revisions() -> frozenset[str]:
    return frozenset(one.revision for one in revisions().walk_revisions())


def current(connection: Connection) -> str | None:
    """The revision of a database; None for one without tables.

    Raises StoreError for tables that are none of edgekit's, and for a database of a newer edgekit.
    """
    found = stored(connection)
    if found is not None and found not in known_revisions():
        raise StoreError(
            f"the database has the schema {found}, this edgekit knows up to {head()}: it was used by a newer one",
            hint="install that edgekit again, or restore a backup that was made before",
        )
    return found


def stored(connection: Connection) -> str | None:
    """Like `current`, of a newer edgekit too."""
    if not inspect(connection).has_table(VERSION_TABLE):
        there = sorted(inspect(connection).get_table_names())
        if there:
            raise StoreError(
                f"the database holds tables that edgekit did not make: {', '.join(there[:5])}",
                hint="give the fleet a database of its own",
            )
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return None if found is None else str(found)


def upgrade(engine: Engine, to: str = "head") -> None:
    """Brings the database to a revision, from nothing or from an older one.

    Raises StoreError like `current`, and where a revision fails: then the database is as it was.
    """
    with alone(engine) as connection:
        before = current(connection)
        if before != (head() if to == "head" else to):
            migrate(connection, to)
            logger.info("the database came from schema %s to %s", before or "none", head() if to == "head" else to)


def migrate(connection: Connection, to: str = "head") -> None:
    """Within `alone`. Raises StoreError like `upgrade`."""
    before, wanted = current(connection), head() if to == "head" else to
    try:
        _run(connection, wanted)
    except DBAPIError as error:
        raise StoreError(
            f"the database could not be brought from schema {before or 'none'} to {wanted}: {error.orig}",
            hint="it is as it was before; make room, mend what is named, and start again",
        ) from error


def drop_all(connection: Connection) -> None:
    """Every table of edgekit's; within `alone`. Raises StoreError for others' tables."""
    stored(connection)
    tables = MetaData()
    tables.reflect(connection)
    tables.drop_all(connection)


def _run(connection: Connection, wanted: str) -> None:
    known = revisions()
    context = MigrationContext.configure(
        connection,
        opts={"fn": lambda heads, _: known._upgrade_revs(wanted, heads), "transactional_ddl": True},
    )
    with Operations.context(context):
        context.run_migrations()
    if connection.dialect.name == "sqlite":
        broken = connection.execute(text("PRAGMA foreign_key_check")).all()
        if broken:
            raise StoreError(
                f"{len(broken)} rows point nowhere behind schema {wanted}, the first in {broken[0][0]}",
                hint="the database is as it was before; report it",
            )


@contextmanager
def alone(engine: Engine) -> Iterator[Connection]:
    """A transaction that may change tables; no other one runs beside it."""
    with _one_at_a_time, engine.connect().execution_options(edgekit_writes=True) as connection:
        if engine.dialect.name != "sqlite":
            with connection.begin():
                # However long another one migrates, it is waited for; what holds a table, only as long as ever.
                kept = connection.execute(text("SHOW lock_timeout")).scalar_one()
                connection.execute(text("SET LOCAL lock_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
                connection.execute(text("SELECT set_config('lock_timeout', :kept, true)"), {"kept": kept})
                yield connection
            return
        # Copying a table drops the old one, and with it, by its keys, the rows of others; outside of transactions only.
        raw = connection.connection.cursor()
        raw.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                yield connection
        finally:
            raw.execute("PRAGMA foreign_keys=ON")
            raw.close()

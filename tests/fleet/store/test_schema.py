"""Revisions and tables stay equal, and older databases come to the newest schema or stay as they are."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from edgekit.fleet.store import Database
from edgekit.fleet.store.schema import current, head, revisions
from edgekit.fleet.store.tables import Base


def test_revisions_make_exactly_the_tables(database_url: str) -> None:
    database = Database(database_url)
    database.create()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": False})
        assert compare_metadata(context, Base.metadata) == []
        assert current(connection) == head()
    database.close()


def test_revisions_are_one_line() -> None:
    assert len(revisions().get_heads()) == 1

"""The database of a fleet: SQLite in WAL mode by default, PostgreSQL by URL; the same tables and queries on both."""

from edgekit.fleet.store.database import Database

__all__ = ["Database"]

"""The database of a fleet: SQLite in WAL mode by default, PostgreSQL by URL; the same tables and queries on both.

To add a column or a table: change `tables.py`, then `python -m edgekit.fleet.store.migrations "Add a note to devices"`
writes the revision that brings older databases there; `migrations/__init__.py` says what to look at in it.
"""

from edgekit.fleet.store.database import Database

__all__ = ["Database"]

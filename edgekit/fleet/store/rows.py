"""Rows as lines of JSON, by table, the same from either database and for either."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from sqlalchemy import JSON, Connection, MetaData, Table, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB

from edgekit.errors import DataError
from edgekit.fleet.store.schema import VERSION_TABLE
from edgekit.fleet.store.tables import Clock, Device, Rollout

LEFT_OUT = (VERSION_TABLE, "leases")
AT_ONCE = 500
# Workers and devices may have heard of later counts than a backup holds: they jump beyond.
JUMP = 1_000_000


def tables_of(connection: Connection) -> list[Table]:
    """As they are there, whatever the schema; whom others point to first."""
    found = MetaData()
    found.reflect(connection)
    return [table for table in found.sorted_tables if table.name not in LEFT_OUT]


def count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def dump(connection: Connection, table: Table) -> Iterator[bytes]:
    """A line for each row, in the order of their keys."""
    query = select(table).order_by(*table.primary_key.columns)
    for row in connection.execute(query, execution_options={"yield_per": AT_ONCE}).mappings():
        yield json.dumps(dict(row), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def load(connection: Connection, table: Table, lines: Iterable[bytes]) -> int:
    """How many; what is in the table goes first. Raises DataError for a line that is none of its rows."""
    for column in table.columns:
        if isinstance(column.type, JSON):  # PostgreSQL's own is one too; None is NULL, as the mapper writes it
            column.type = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    connection.execute(table.delete())
    names = {column.name for column in table.columns}
    batch: list[dict[str, object]] = []
    loaded = 0
    for line in lines:
        row = json.loads(line)
        if not isinstance(row, dict) or row.keys() != names:
            raise DataError(f"a row of {table.name} has other columns", hint="is the backup of this edgekit?")
        batch.append(row)
        if len(batch) == AT_ONCE:
            loaded += _insert(connection, table, batch)
            batch = []
    return loaded + _insert(connection, table, batch)


def _insert(connection: Connection, table: Table, rows: list[dict[str, object]]) -> int:
    if rows:
        connection.execute(table.insert(), rows)
    return len(rows)


def settle(connection: Connection) -> None:
    """Behind the last table, at the newest schema: counts go on from what is there, and what was under way stands."""
    if connection.dialect.name == "postgresql":
        connection.execute(
            text("SELECT setval(pg_get_serial_sequence('events', 'id'), coalesce(max(id), 1)) FROM events")
        )
    connection.execute(update(Clock).values(tick=Clock.tick + JUMP))
    connection.execute(
        update(Device).values(generation=Device.generation + JUMP, changed_tick=select(Clock.tick).scalar_subquery())
    )
    paused = {"state": "paused", "reason": "restored from a backup: look at its devices, then resume it"}
    connection.execute(update(Rollout).where(Rollout.state == "running").values(paused))

"""The statements with which a batch of what devices said reaches the tables, on either database.

PostgreSQL takes a column of values as one array, so that a statement of constant text writes any number of rows in one
round trip; SQLite runs a prepared statement once a row, in the process. No object of the mapper is made on this way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from edgekit.fleet.protocol.agents import Facts, Slot
from edgekit.fleet.protocol.windows import Window


@dataclass(frozen=True, slots=True)
class Saying:
    """What one device said. `windows` in the order of their sequence; `facts` None: as before."""

    device: str
    at: float
    slot: Slot
    windows: tuple[Window, ...]
    facts: Facts | None

    @property
    def taken(self) -> int:
        """The last sequence of its windows, -1 without."""
        return self.windows[-1].sequence if self.windows else -1


# Values of the rows, as columns of one array each: (name, type).
_WINDOW = (
    ("device", "text"),
    ("sequence", "bigint"),
    ("started_at", "float8"),
    ("seconds", "float8"),
    ("digest", "text"),
    ("answered", "bigint"),
    ("errors", "bigint"),
    ("content", "jsonb"),
)
_NAMES = ", ".join(name for name, _ in _WINDOW)
_SAID = (
    ("id", "text"),
    ("at", "float8"),
    ("running", "text"),
    ("slot", "text"),
    ("taken", "bigint"),
    ("latest", "text"),
)
_FACTS = (("id", "text"), ("tier", "text"), ("boot", "text"), ("facts", "text"))


def _unnest(columns: Sequence[tuple[str, str]]) -> str:
    arrays = ", ".join(f"%s::{kind}[]" for _, kind in columns)
    return f"unnest({arrays}) AS v({', '.join(name for name, _ in columns)})"


_RECORD = (
    '{"device":"%s","sequence":%s,"started_at":%r,"seconds":%r,"digest":"%s","answered":%s,"errors":%s,"content":%s}'
)
# One text for all windows, in which each stands as it is kept: making arrays of them took half of the time of a call.
PG_WINDOWS = (
    f"INSERT INTO windows ({_NAMES}) SELECT {_NAMES} FROM json_to_recordset(%s::json) "
    f"AS v({', '.join(f'{name} {kind}' for name, kind in _WINDOW)}) ON CONFLICT DO NOTHING"
)
PG_SAID = (
    "UPDATE devices SET seen_at = greatest(devices.seen_at, v.at), running = v.running, slot = v.slot::jsonb, "
    "taken = greatest(devices.taken, v.taken), latest = coalesce(v.latest::jsonb, devices.latest) "
    f"FROM {_unnest(_SAID)} JOIN devices AS earlier ON earlier.id = v.id WHERE devices.id = v.id "
    "RETURNING devices.id, devices.taken, devices.changed_tick, earlier.taken"
)
PG_NOTES = (
    "INSERT INTO events (at, actor, action, subject, detail) "
    "SELECT v.at, d.name, 'device.start', d.name, v.detail::jsonb "
    f"FROM {_unnest((('id', 'text'), ('boot', 'text'), ('at', 'float8'), ('detail', 'text')))} "
    "JOIN devices d ON d.id = v.id AND d.boot <> v.boot"
)
PG_FACTS = (
    f"UPDATE devices SET tier = v.tier, boot = v.boot, facts = v.facts::jsonb FROM {_unnest(_FACTS)} "
    "WHERE devices.id = v.id"
)

LITE_WINDOWS = f"INSERT INTO windows ({_NAMES}) VALUES ({', '.join('?' * len(_WINDOW))}) ON CONFLICT DO NOTHING"
LITE_SAID = (
    "UPDATE devices SET seen_at = max(coalesce(seen_at, 0), ?2), running = ?3, slot = ?4, taken = max(taken, ?5), "
    "latest = coalesce(?6, latest) WHERE id = ?1"
)
LITE_NOTES = (
    "INSERT INTO events (at, actor, action, subject, detail) "
    "SELECT ?3, name, 'device.start', name, ?4 FROM devices WHERE id = ?1 AND boot <> ?2"
)
LITE_FACTS = "UPDATE devices SET tier = ?2, boot = ?3, facts = ?4 WHERE id = ?1"


def write_all(connection: Connection, said: Sequence[Saying]) -> tuple[dict[str, tuple[int, int]], int]:
    """Within a transaction that writes. For each device the sequence up to which it is stored, before this and now,
    where the database tells it; and the latest tick of their orders, -1 where it does not."""
    windows: list[tuple[object, ...]] = []
    told: list[tuple[object, ...]] = []
    for one in said:
        rows = _window_rows(one)
        windows += rows
        told.append(_said_row(one, rows[-1][-1] if rows else None))
    started: list[tuple[object, ...]] = [
        (one.device, one.facts.boot, one.at, json.dumps({"agent": one.facts.agent})) for one in said if one.facts
    ]
    facts: list[tuple[object, ...]] = [
        (one.device, one.facts.tier, one.facts.boot, one.facts.model_dump_json()) for one in said if one.facts
    ]
    lite = connection.dialect.name == "sqlite"
    for text, rows in ((LITE_NOTES if lite else PG_NOTES, started), (LITE_FACTS if lite else PG_FACTS, facts)):
        if rows:
            connection.exec_driver_sql(text, rows if lite else _columns(rows))
    if windows:
        connection.exec_driver_sql(*((LITE_WINDOWS, windows) if lite else (PG_WINDOWS, (_records(windows),))))
    if not told:
        return {}, -1
    if lite:
        connection.exec_driver_sql(LITE_SAID, told)
        return {}, -1
    found = connection.exec_driver_sql(PG_SAID, _columns(told)).all()
    stored = {device: (before, taken) for device, taken, _, before in found}
    return stored, max((tick for _, _, tick, _ in found), default=-1)


def _columns(rows: Sequence[tuple[object, ...]]) -> tuple[list[object], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def _records(windows: Sequence[tuple[object, ...]]) -> str:
    """As JSON. Nothing in it wants quoting: ids and digests are hexadecimal, and the content is JSON already."""
    return f"[{','.join(_RECORD % row for row in windows)}]"


def _window_rows(one: Saying) -> list[tuple[object, ...]]:
    return [
        (
            one.device,
            window.sequence,
            window.started_at,
            window.seconds,
            window.digest,
            window.answered,
            window.errors,
            window.model_dump_json(exclude_defaults=True),  # a fifth less to keep
        )
        for window in one.windows
    ]


def _said_row(one: Saying, latest: object) -> tuple[object, ...]:
    return (one.device, one.at, one.slot.running, one.slot.model_dump_json(), one.taken, latest)

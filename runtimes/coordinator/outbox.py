"""Results that wait for a way up: kept on disk within a bound, sent in order when there is one again."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edgekit.errors import OutputError, UsageError

_SCHEMA = """
create table if not exists waiting (
    position integer primary key autoincrement,
    id text not null unique,
    body blob not null
);
create table if not exists counts (name text primary key, value integer not null);
insert or ignore into counts values ('dropped', 0), ('sent', 0);
"""


@dataclass(frozen=True)
class Parcel:
    """`id` is the receiver's means of telling a second delivery from a first."""

    id: str
    body: bytes


class Outbox:
    """A queue in one SQLite file, at most `limit_bytes` of bodies: the oldest are dropped, and counted, to make room.

    Delivery is at least once and in order: a parcel leaves the file only after `send` returned, so that a crash in
    between sends it again under the same id. Putting an id that waits already changes nothing. Safe from any thread.
    Raises OutputError where the file cannot be used.
    """

    def __init__(self, path: Path, limit_bytes: int = 64 << 20) -> None:
        if limit_bytes < 1:
            raise UsageError(f"an outbox of {limit_bytes} bytes, allowed 1 or more")
        self.path, self.limit_bytes = path, limit_bytes
        self._lock, self._sending = threading.Lock(), threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._store = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._store.execute("pragma journal_mode=wal")
            self._store.execute("pragma synchronous=full")
            self._store.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise OutputError(f"cannot use {path} as an outbox: {error}", hint="give another file") from error

    def put(self, id: str, body: bytes) -> bool:
        """False where it was not kept: it waits already, or is larger than the whole outbox (which counts as dropped).

        On return it is on disk.
        """
        with self._lock, self._transaction():
            if len(body) > self.limit_bytes:
                self._count("dropped", 1)
                return False
            if self._store.execute("select 1 from waiting where id = ?", (id,)).fetchone():
                return False
            self._make_room(len(body))
            self._store.execute("insert into waiting (id, body) values (?, ?)", (id, body))
            return True

    def flush(self, send: Callable[[Parcel], None], *, limit: int | None = None) -> int:
        """Sends in order, at most `limit`; returns how many went. An error of `send` stops it and goes to the caller;
        that parcel and those after it stay."""
        done = 0
        with self._sending:
            while limit is None or done < limit:
                parcel = self._oldest()
                if parcel is None:
                    break
                send(parcel)
                with self._lock, self._transaction():
                    # By id: while it was sent, it may have been dropped to make room.
                    self._store.execute("delete from waiting where id = ?", (parcel.id,))
                    self._count("sent", 1)
                done += 1
        return done

    def __len__(self) -> int:
        with self._lock:
            return int(self._store.execute("select count(*) from waiting").fetchone()[0])

    @property
    def size_bytes(self) -> int:
        """Of the bodies that wait."""
        with self._lock:
            return self._size()

    @property
    def dropped(self) -> int:
        """How many were given up for want of room since the file was made."""
        return self._read("dropped")

    @property
    def sent(self) -> int:
        return self._read("sent")

    def close(self) -> None:
        with self._lock:
            self._store.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _oldest(self) -> Parcel | None:
        with self._lock:
            row = self._store.execute("select id, body from waiting order by position limit 1").fetchone()
        return Parcel(row[0], bytes(row[1])) if row else None

    def _make_room(self, needed: int) -> None:
        size = self._size()
        while size + needed > self.limit_bytes:
            position, freed = self._store.execute(
                "select position, length(body) from waiting order by position limit 1"
            ).fetchone()
            self._store.execute("delete from waiting where position = ?", (position,))
            self._count("dropped", 1)
            size -= freed

    def _size(self) -> int:
        return int(self._store.execute("select coalesce(sum(length(body)), 0) from waiting").fetchone()[0])

    def _count(self, name: str, by: int) -> None:
        self._store.execute("update counts set value = value + ? where name = ?", (by, name))

    def _read(self, name: str) -> int:
        with self._lock:
            return int(self._store.execute("select value from counts where name = ?", (name,)).fetchone()[0])

    def _transaction(self) -> _Transaction:
        return _Transaction(self._store, self.path)


class _Transaction:
    """All of a block or none of it; the database's errors become OutputError."""

    def __init__(self, store: sqlite3.Connection, path: Path) -> None:
        self._store, self._path = store, path

    def __enter__(self) -> None:
        try:
            self._store.execute("begin immediate")
        except sqlite3.Error as error:
            raise OutputError(f"cannot write the outbox {self._path}: {error}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.execute("rollback" if error is not None else "commit")
        if isinstance(error, sqlite3.Error):
            raise OutputError(f"cannot write the outbox {self._path}: {error}", hint="check the disk") from error

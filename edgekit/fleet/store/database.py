"""A database by URL, and its transactions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from edgekit.errors import MissingExtraError, StoreError, UsageError
from edgekit.fleet.store.failures import first_line, translated
from edgekit.fleet.store.schema import upgrade
from edgekit.fleet.store.tables import Clock

BUSY_MS = 10_000  # a writer waits so long for another one
CONNECT_S = 5
POOL = 8
DRIVERS = ("sqlite", "postgresql+psycopg")
WRITERS_LOCK = 0x65_64_67_66  # PostgreSQL's advisory lock of those that change this database

# A server that vanished without a word is given up within some 20 s, not by TCP's own hours.
_POSTGRESQL = {
    "connect_timeout": CONNECT_S,
    "application_name": "edgekit fleet",
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "options": f"-c lock_timeout={BUSY_MS} -c idle_in_transaction_session_timeout=60000",
}


class Database:
    """`url`: sqlite:///file.db or postgresql+psycopg://user@host/name. Safe to use from many threads.

    Changes come one after the other on both databases, so that what a transaction has read still holds when it writes.
    Only those that say `shared`, which touch rows that nobody else changes by reading them first, run beside each other
    on PostgreSQL.
    """

    def __init__(self, url: str) -> None:
        """Raises UsageError for another kind of URL, MissingExtraError where the driver is not installed."""
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise UsageError(f"database URL {url!r:.100}", hint="sqlite:///fleet.db") from error
        if parsed.drivername not in DRIVERS:
            raise UsageError(
                f"database {parsed.drivername!r}, allowed {' and '.join(DRIVERS)}",
                hint="sqlite:///fleet.db, or postgresql+psycopg://user@host/fleet",
            )
        self.url = parsed
        self.is_sqlite = parsed.drivername == "sqlite"
        if self.is_sqlite and parsed.database in (None, "", ":memory:"):
            raise UsageError("a database in memory would be lost", hint="sqlite:///fleet.db")
        self.engine = self._open()
        readers: Engine = self.engine
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            readers = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._readers = sessionmaker(readers, expire_on_commit=False)
        self._writers = sessionmaker(self.engine, expire_on_commit=False)
        # Writers of one process queue here: SQLite's own would look again after ever longer sleeps.
        self._turn = threading.Lock()

    def _open(self) -> Engine:
        pool: dict[str, Any] = {"pool_size": POOL, "max_overflow": POOL, "pool_timeout": BUSY_MS / 1000}
        try:
            return create_engine(
                self.url,
                pool_pre_ping=not self.is_sqlite,  # a server that was started anew costs no request
                connect_args={} if self.is_sqlite else _POSTGRESQL,
                **pool,
            )
        except ModuleNotFoundError as error:
            raise MissingExtraError("psycopg", "postgresql", "PostgreSQL") from error

    @property
    def path(self) -> Path | None:
        """Of a SQLite file."""
        return Path(self.url.database) if self.is_sqlite and self.url.database else None

    def create(self) -> None:
        """Makes the tables, or brings older ones to the newest schema. Raises StoreError like `upgrade`."""
        with told():
            upgrade(self.engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Sees the database as it was at its first query. Raises StoreError where it is down or locked."""
        with told(), self._readers() as session:
            yield session

    @contextmanager
    def write(self, shared: bool = False) -> Iterator[Session]:
        """One transaction: all of it, or nothing. Raises StoreError, with `again` where the same may well succeed at
        once; ConflictError for a row that is there already, UsageError for text that cannot be stored."""
        with told(), self._in_turn(), self._writers() as session:
            session.connection(execution_options={"edgekit_writes": True})
            if not self.is_sqlite:
                # Behind this wait every statement sees what the others have committed: READ COMMITTED.
                kind = "_shared" if shared else ""
                session.execute(text(f"SELECT pg_advisory_xact_lock{kind}({WRITERS_LOCK})"))
            yield session
            session.flush()
            _commit(session)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        if not self._turn.acquire(timeout=BUSY_MS / 1000):
            raise StoreError("the database is locked: too many changes wait", hint="try again later")
        try:
            yield
        finally:
            self._turn.release()

    def tick(self, session: Session) -> int:
        """The next tick; within a transaction that writes. Others that tick wait for its end."""
        session.execute(update(Clock).values(tick=Clock.tick + 1))
        return session.execute(select(Clock.tick)).scalar_one()

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def told() -> Iterator[None]:
    """What a database complains of within becomes our errors."""
    try:
        yield
    except SQLAlchemyError as error:
        ours = translated(error)
        if ours is None:
            raise
        raise ours from error


def _commit(session: Session) -> None:
    """Raises StoreError where nobody can say whether it was stored."""
    try:
        session.commit()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise StoreError(
            f"the connection to the database broke while a change was stored: {first_line(error)}",
            hint="it is stored, or it is not, whole: look before you try again",
        ) from error


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver's guess
    cursor = connection.cursor()
    for setting in (f"busy_timeout={BUSY_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    # A reader that turns writer in the middle fails at once where another has written; who means to write says so.
    writes = connection.get_execution_options().get("edgekit_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

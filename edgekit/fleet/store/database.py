"""A database by URL, and its transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from edgekit.errors import MissingExtraError, StoreError, UsageError
from edgekit.fleet.store.schema import upgrade
from edgekit.fleet.store.tables import Clock

BUSY_MS = 10_000  # a writer waits so long for another one
POOL = 8
DRIVERS = ("sqlite", "postgresql+psycopg")


class Database:
    """`url`: sqlite:///file.db or postgresql+psycopg://user@host/name. Safe to use from many threads."""

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
        settings: dict[str, Any] = {"pool_size": POOL, "max_overflow": POOL, "pool_timeout": BUSY_MS / 1000}
        try:
            self.engine = create_engine(parsed, pool_pre_ping=not self.is_sqlite, **settings)
        except ModuleNotFoundError as error:
            raise MissingExtraError("psycopg", "fleet", "PostgreSQL") from error
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @property
    def path(self) -> Path | None:
        """Of a SQLite file."""
        return Path(self.url.database) if self.is_sqlite and self.url.database else None

    def create(self) -> None:
        """Makes the tables, or brings older ones to the newest schema. Raises StoreError like `upgrade`."""
        with self._told():
            upgrade(self.engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Raises StoreError where the database is down or locked."""
        with self._told(), self._sessions() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: all of it, or nothing. Raises StoreError."""
        with self._told(), self._sessions() as session, session.begin():
            session.connection(execution_options={"edgekit_writes": True})
            yield session

    def tick(self, session: Session) -> int:
        """The next tick; within a transaction that writes. Others that tick wait for its end."""
        session.execute(update(Clock).values(tick=Clock.tick + 1))
        return session.execute(select(Clock.tick)).scalar_one()

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            raise StoreError(
                f"the database cannot be used: {_first_line(error)}",
                hint="is it running, and is there space left? nothing was changed; try again",
            ) from error
        except DBAPIError:
            raise
        except SQLAlchemyError as error:
            raise StoreError(f"the database cannot be used: {_first_line(error)}", hint="try again") from error


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver's guess
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_MS}"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    # A reader that turns writer in the middle fails at once where another has written; who means to write says so.
    writes = connection.get_execution_options().get("edgekit_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]

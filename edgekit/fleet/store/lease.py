"""What only one worker does at a time: rollouts carried on, what is old removed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from sqlalchemy import delete, or_, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from edgekit.errors import StoreError
from edgekit.fleet.store.database import Database
from edgekit.fleet.store.tables import Lease as Row

VALID_S = 5.0
LEADER = "leader"


class Lease:
    """Taken, renewed by taking it again, and free for others `valid_s` after the last time.

    Time is the database's on PostgreSQL, so that workers' clocks may differ. A holder that stands still for longer than
    `valid_s` and goes on does its step beside the next holder's: what is done under a lease is done in transactions
    that read what they need, so that this repeats work and harms nothing.
    """

    def __init__(
        self, database: Database, name: str, *, valid_s: float = VALID_S, now: Callable[[], float] = time.time
    ) -> None:
        self._database, self._name, self._valid_s, self._now = database, name, valid_s, now
        self.holder = secrets.token_hex(8)

    def take(self) -> bool:
        """Whether this one holds it from now on. Raises StoreError."""
        with self._database.write(shared=True) as session:
            now = self._time(session)
            values = {"name": self._name, "holder": self.holder, "ends_at": now + self._valid_s}
            insert = (sqlite if self._database.is_sqlite else postgresql).insert(Row).values(values)
            free = or_(Row.holder == self.holder, Row.ends_at <= now)
            taking = insert.on_conflict_do_update(
                index_elements=[Row.name], set_={"holder": self.holder, "ends_at": now + self._valid_s}, where=free
            )
            return bool(session.scalar(taking.returning(Row.holder)) == self.holder)

    def leave(self) -> None:
        """Free for the next at once; where the database is down, by its time."""
        try:
            with self._database.write(shared=True) as session:
                session.execute(delete(Row).where(Row.name == self._name, Row.holder == self.holder))
        except StoreError:
            return

    def is_held(self) -> bool:
        """By this one or another. Raises StoreError."""
        with self._database.read() as session:
            ends_at = session.scalar(select(Row.ends_at).where(Row.name == self._name))
            return ends_at is not None and ends_at > self._time(session)

    def _time(self, session: Session) -> float:
        if self._database.is_sqlite:
            return self._now()
        return float(session.scalar(text("SELECT extract(epoch FROM clock_timestamp())::float8")) or 0.0)

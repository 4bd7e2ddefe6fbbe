"""Answers that are kept for requests that may come twice."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, update

from edgekit.fleet.service.core import Core
from edgekit.fleet.store.tables import Repeated

ABANDONED_S = 120.0  # whoever claimed a key and has not answered by then has died


@dataclass(frozen=True)
class Answered:
    """`status` 0: not yet. `body` "": not kept."""

    fingerprint: str
    status: int
    body: str


class Repeats:
    def __init__(self, core: Core) -> None:
        self._core = core

    def claim(self, key: str, fingerprint: str) -> Answered | None:
        """None: it is the first, and to be answered. Else what became of the first."""
        now = self._core.now()
        with self._core.database.write() as session:  # nobody else writes meanwhile: one of many is the first
            row = session.get(Repeated, key)
            if row is not None and (row.status or now - row.at <= ABANDONED_S):
                return Answered(row.fingerprint, row.status, row.body)
            if row is not None:
                session.delete(row)
                session.flush()
            session.add(Repeated(key=key, fingerprint=fingerprint, status=0, body="", at=now))
        return None

    def keep(self, key: str, status: int, body: str) -> None:
        with self._core.database.write() as session:
            session.execute(update(Repeated).where(Repeated.key == key).values(status=status, body=body))

    def release(self, key: str) -> None:
        """It failed: the next one with the key is the first again."""
        with self._core.database.write() as session:
            session.execute(delete(Repeated).where(Repeated.key == key))

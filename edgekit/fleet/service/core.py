"""What every part of the service shares."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgekit.fleet.protocol.people import EventView
from edgekit.fleet.protocol.wire import Page
from edgekit.fleet.registry.blobs import Blobs
from edgekit.fleet.store.database import Database
from edgekit.fleet.store.tables import Event
from edgekit.fleet.trust.authority import Authority

MAX_PAGE = 500


@dataclass(frozen=True)
class Core:
    """`changed`: called with the ids of devices whose orders are new, after the transaction. `key`: bundles must be
    signed by it, where given."""

    database: Database
    blobs: Blobs
    authority: Authority
    folder: Path
    key: Path | None = None
    now: Callable[[], float] = time.time
    changed: list[Callable[[tuple[str, ...]], None]] = field(default_factory=list)

    def tell(self, devices: tuple[str, ...]) -> None:
        for listener in self.changed if devices else ():
            listener(devices)

    def note(self, session: Session, actor: str, action: str, subject: str, **detail: Any) -> None:
        """A line of the audit log, in the transaction of what it tells."""
        session.add(Event(at=self.now(), actor=actor, action=action, subject=subject, detail=detail))

    def events(self, after: str | None = None, limit: int = 50, subject: str = "") -> Page[EventView]:
        """The newest first."""
        query = select(Event).order_by(Event.id.desc()).limit(limit + 1)
        if after is not None:
            query = query.where(Event.id < int(after))
        if subject:
            query = query.where(Event.subject == subject)
        with self.database.read() as session:
            rows = [_event(row) for row in session.scalars(query)]
        return Page[EventView](items=tuple(rows[:limit]), next=str(rows[limit - 1].id) if len(rows) > limit else None)


def _event(row: Event) -> EventView:
    return EventView(id=row.id, at=row.at, actor=row.actor, action=row.action, subject=row.subject, detail=row.detail)


def paged(rows: list[Any], limit: int, key: Callable[[Any], str]) -> tuple[list[Any], str | None]:
    """`rows`: one more than `limit` where there are more."""
    return rows[:limit], key(rows[limit - 1]) if len(rows) > limit else None

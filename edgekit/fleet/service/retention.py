"""What is old goes: windows, lines of the audit log, answers kept for repeated requests, invitations that ended."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sqlalchemy import delete, func, inspect, select, text, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from edgekit.fleet.service.core import Core
from edgekit.fleet.store.tables import Base, Event, Invitation, Repeated, SpanRow, WindowRow

DAY_S = 86_400.0
AT_ONCE = 2_000  # rows of one transaction, so that nobody waits long
MOST = 20_000  # rows of one call, which takes a second at most; who calls it again at once keeps up with any fleet
_BLIND = {"synchronize_session": False}


@dataclass(frozen=True)
class Keeping:
    """For how long, in seconds; 0 for ever. A device that sends a window each 30 s makes some 3.5 MB a day of them, so
    that `windows_most` of the whole fleet, some 24 GB, bounds them too; 0 does not."""

    windows_s: float = 14 * DAY_S
    windows_most: int = 20_000_000
    spans_s: float = 400 * DAY_S
    events_s: float = 400 * DAY_S
    answers_s: float = 1 * DAY_S
    invitations_s: float = 30 * DAY_S  # behind their end


class Retention:
    def __init__(self, core: Core, keeping: Keeping) -> None:
        self._core, self.keeping = core, keeping

    def prune(self) -> dict[str, int]:
        """Rows removed, by table; where it is `MOST` of one there are more. Raises StoreError."""
        now, keeping = self._core.now(), self.keeping
        gone: dict[str, int] = {}
        for what, column, kept_s in (
            (WindowRow, WindowRow.started_at, keeping.windows_s),
            (SpanRow, SpanRow.starts_at, keeping.spans_s),
            (Event, Event.at, keeping.events_s),
            (Repeated, Repeated.at, keeping.answers_s),
            (Invitation, Invitation.ends_at, keeping.invitations_s),
        ):
            if kept_s:
                gone[what.__tablename__] = self._prune(what, column, now - kept_s, MOST)
        if keeping.windows_most:
            already = gone.get(WindowRow.__tablename__, 0)
            surplus = min(self._windows() - keeping.windows_most, MOST - already)
            removed = self._prune(WindowRow, WindowRow.started_at, math.inf, surplus) if surplus > 0 else 0
            gone[WindowRow.__tablename__] = already + removed
        return gone

    def _windows(self) -> int:
        """How many there are; what PostgreSQL last knew, as counting reads them all there."""
        if self._core.database.is_sqlite:
            query = select(func.count()).select_from(WindowRow)
        else:
            query = text("SELECT n_live_tup FROM pg_stat_user_tables WHERE relid = CAST('windows' AS regclass)")  # type: ignore[assignment]
        with self._core.database.read() as session:
            return int(session.scalar(query) or 0)

    def _prune(self, what: type[Base], column: InstrumentedAttribute[float], before: float, most: int) -> int:
        """The oldest go first."""
        keys = list(inspect(what).primary_key)
        removed = 0
        while removed < most:
            some = min(AT_ONCE, most - removed)
            old = select(*keys).where(column < before).order_by(column).limit(some)
            with self._core.database.write(shared=True) as session:
                done = session.execute(delete(what).where(tuple_(*keys).in_(old)), execution_options=_BLIND)
                count = int(getattr(done, "rowcount", 0))
            removed += count
            if count < some:
                break
        return removed

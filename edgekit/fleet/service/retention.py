"""What is old goes: windows, lines of the audit log, answers kept for repeated requests, invitations that ended."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, inspect, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from edgekit.fleet.service.core import Core
from edgekit.fleet.store.tables import Base, Event, Invitation, Repeated, SpanRow, WindowRow

DAY_S = 86_400.0
AT_ONCE = 2_000  # rows of one transaction, so that nobody waits long
MOST = 20_000  # rows of one call, which takes a second at most; who calls it again at once keeps up with any fleet
_BLIND = {"synchronize_session": False}


@dataclass(frozen=True)
class Keeping:
    """For how long, in seconds; 0 for ever. A device that sends a window each 30 s makes some 3 MB a day of them."""

    windows_s: float = 14 * DAY_S
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
                gone[what.__tablename__] = self._prune(what, column, now - kept_s)
        return gone

    def _prune(self, what: type[Base], column: InstrumentedAttribute[float], before: float) -> int:
        keys = list(inspect(what).primary_key)
        removed = 0
        while removed < MOST:
            old = select(*keys).where(column < before).order_by(column).limit(AT_ONCE)
            with self._core.database.write(shared=True) as session:
                done = session.execute(delete(what).where(tuple_(*keys).in_(old)), execution_options=_BLIND)
                count = int(getattr(done, "rowcount", 0))
            removed += count
            if count < AT_ONCE:
                break
        return removed

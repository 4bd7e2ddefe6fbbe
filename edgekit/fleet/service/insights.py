"""What is found out from what devices saw: suspects among peers, and drift. Leader's work, in slices.

Each window is read once: a device's row holds what it saw first with a bundle (the reference), and lately. A slice adds
what is new of some hundred devices; when all have had their turn they are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sqlalchemy import and_, func, insert, or_, select, update
from sqlalchemy.orm import Session

from edgekit.fleet.protocol.insights import Finding, FindingKind
from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.protocol.wire import Page
from edgekit.fleet.service.comparing import Comparison
from edgekit.fleet.service.core import Core, paged
from edgekit.fleet.service.memory import Memory
from edgekit.fleet.store.tables import Device, ReferenceRow, WindowRow
from edgekit.fleet.store.tables import Finding as FindingRow

STEP_EVERY_S = 5.0
SLICE = 300  # devices of one step
AT_ONCE = 50  # rows of one transaction
MOST_WINDOWS = 3_000  # of one step: one that was away sends many, and the rest comes with the next steps
COMPARE_EVERY_S = 180.0
LEFT_S = 60.0  # a comparison that nobody took on for so long is begun anew

_HELD = and_(ReferenceRow.device == Device.id, ReferenceRow.digest == Device.running)
_UPTO = func.coalesce(ReferenceRow.taken, -1)


class Insights:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._after = ""
        self._stepped_at = self._compared_at = -math.inf
        self._comparison: Comparison | None = None

    def step(self) -> int:
        """One slice, now and then; the windows that it took. Call it again and again, in one worker. What it computes
        is kept short, as the calls of agents wait for it. Raises StoreError."""
        now = self._core.now()
        if now - self._stepped_at < STEP_EVERY_S:
            return 0
        left, self._stepped_at = now - self._stepped_at > LEFT_S, now
        if self._comparison is not None and not left:
            if self._comparison.step():
                self._comparison = None
            return 0
        self._comparison = None
        taken = self._gather()
        if self._after == "" and now - self._compared_at >= COMPARE_EVERY_S:
            self._compared_at, self._comparison = now, Comparison(self._core)
        return taken

    def catch_up(self) -> None:
        """Takes all that there is, and compares. Raises StoreError."""
        while self._gather() or self._after:
            pass
        self.compare()

    def compare(self) -> None:
        """At once, what was taken. Raises StoreError."""
        comparison = Comparison(self._core)
        while not comparison.step():
            pass

    def _gather(self) -> int:
        """The next slice of devices that sent something new; how many windows."""
        with self._core.database.read() as session:
            rows = session.execute(
                select(Device.id, Device.running, Device.taken, ReferenceRow.content)
                .outerjoin(ReferenceRow, _HELD)
                .where(Device.id > self._after, Device.running.is_not(None), Device.taken > _UPTO)
                .order_by(Device.id)
                .limit(SLICE)
            ).all()
            fresh, count = _fresh(session, [row.id for row in rows])
        grown: dict[tuple[str, str], tuple[Memory, int]] = {}
        for device, running, taken, content in rows:
            upto, windows = fresh.get(device, (taken, []))
            if count == MOST_WINDOWS and device not in fresh:
                break  # with the next step
            memory = Memory() if content is None else Memory.read(content)
            own = [window for window in windows if window.digest == running]
            whole = count < MOST_WINDOWS or device != next(reversed(fresh), "")
            grown[device, running] = (memory.add(own) if own else memory, taken if whole else upto)
        self._after = "" if len(grown) == len(rows) < SLICE else next(reversed(grown), ("", ""))[0]
        if grown:
            self._keep(grown)
        return count

    def _keep(self, grown: Mapping[tuple[str, str], tuple[Memory, int]]) -> None:
        """In transactions of some rows, whose content is made before: while one lasts, no device is answered."""
        rows = [
            {"device": device, "digest": digest, "taken": taken, "content": memory.stored()}
            for (device, digest), (memory, taken) in grown.items()
        ]
        ends = {key: memory.reference.at if memory.recent.seconds else None for key, (memory, _) in grown.items()}
        for start in range(0, len(rows), AT_ONCE):
            self._keep_some(rows[start : start + AT_ONCE], ends)

    def _keep_some(self, rows: Sequence[dict[str, object]], ends: Mapping[tuple[str, str], float | None]) -> None:
        devices = {str(row["device"]) for row in rows}
        with self._core.database.write(shared=True) as session:
            there = set(session.scalars(select(Device.id).where(Device.id.in_(devices))))
            held = select(ReferenceRow.device, ReferenceRow.digest, ReferenceRow.ended_at)
            known = {
                (device, digest): at
                for device, digest, at in session.execute(held.where(ReferenceRow.device.in_(devices)))
            }
            fresh, older = [], []
            for row in rows:
                key = (str(row["device"]), str(row["digest"]))
                ended_at = known.get(key)
                whole = {**row, "ended_at": ends[key] if ended_at is None else ended_at}
                if key in known:
                    older.append(whole)
                elif key[0] in there:
                    fresh.append(whole)
            if older:
                session.execute(update(ReferenceRow), older)
            if fresh:
                session.execute(insert(ReferenceRow), fresh)

    def list(
        self, kind: FindingKind | None = None, device: str = "", after: str | None = None, limit: int = 100
    ) -> Page[Finding]:
        """The worst first; `device`: its id or name."""
        query = select(FindingRow).order_by(FindingRow.score.desc(), FindingRow.device, FindingRow.metric)
        if kind is not None:
            query = query.where(FindingRow.kind == kind)
        if device:
            query = query.join(Device).where(or_(Device.id == device, Device.name == device))
        start = int(after) if after is not None and after.isdigit() else 0
        with self._core.database.read() as session:
            rows = session.scalars(query.offset(start).limit(limit + 1)).all()
        found = [Finding.model_validate(row.content) for row in rows]
        shown, following = paged(found, limit, lambda _: str(start + limit))
        return Page[Finding](items=tuple(shown), next=following)

    def count(self) -> dict[FindingKind, int]:
        """Devices, by the kind of what was found about them."""
        query = select(FindingRow.kind, func.count(FindingRow.device.distinct())).group_by(FindingRow.kind)
        with self._core.database.read() as session:
            counted = dict(session.execute(query).tuples().all())
        return {"suspect": counted.get("suspect", 0), "drift": counted.get("drift", 0)}


def _fresh(session: Session, devices: Sequence[str]) -> tuple[dict[str, tuple[int, list[Window]]], int]:
    """Device -> (the last sequence that was read, new windows in their order), and how many windows: `MOST_WINDOWS`
    where there may be more of the last device, and of those that are not there."""
    rows = session.execute(
        select(WindowRow.device, WindowRow.sequence, WindowRow.content)
        .join(Device, Device.id == WindowRow.device)
        .outerjoin(ReferenceRow, _HELD)
        .where(WindowRow.device.in_(devices), WindowRow.sequence > _UPTO)
        .order_by(WindowRow.device, WindowRow.sequence)
        .limit(MOST_WINDOWS)
    ).all()
    found: dict[str, tuple[int, list[Window]]] = {}
    for device, sequence, content in rows:
        windows = found[device][1] if device in found else []
        windows.append(Window.model_validate(content))
        found[device] = (sequence, windows)
    return found, len(rows)

"""What is found out from what devices saw: suspects among peers, and drift. Leader's work, in slices.

Each window is read once: a device's row holds what it saw first with a bundle (the reference), and lately. A slice adds
what is new of some hundred devices; when all have had their turn they are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from edgekit.fleet.protocol.insights import Finding, FindingKind
from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.protocol.wire import Page
from edgekit.fleet.service.core import Core, paged
from edgekit.fleet.service.findings import drift_finding, suspect_finding
from edgekit.fleet.store.tables import BundleRow, Device, ReferenceRow, WindowRow
from edgekit.fleet.store.tables import Finding as FindingRow
from edgekit.fleet.telemetry import drift, peers
from edgekit.fleet.telemetry.fading import Faded

STEP_EVERY_S = 5.0
SLICE = 300  # devices of one step
AT_ONCE = 50  # rows of one transaction
MOST_WINDOWS = 3_000  # of one step: one that was away sends many, and the rest comes with the next steps
COMPARE_EVERY_S = 180.0
NOW_HALF_LIFE_S = 900.0  # for peers
RECENT_HALF_LIFE_S = 6 * 3600.0  # for drift: hours, as the hours of a day differ
REFERENCE_S = 24 * 3600.0  # a day and night, and at least
REFERENCE_SAMPLES = 2_000.0
SILENT_S = 3600.0  # who has sent nothing for so long is neither a peer nor a suspect


_HELD = and_(ReferenceRow.device == Device.id, ReferenceRow.digest == Device.running)
_UPTO = func.coalesce(ReferenceRow.taken, -1)


@dataclass(frozen=True)
class Memory:
    """Of a device with a bundle. `began_at`: when its first window did."""

    reference: Faded = Faded()
    recent: Faded = Faded()
    now: Faded = Faded()
    began_at: float = math.nan

    def add(self, windows: Sequence[Window]) -> Memory:
        began_at = windows[0].started_at if math.isnan(self.began_at) else self.began_at
        reference = self.reference
        filling = [window for window in windows if not _is_full(reference, began_at, window.started_at)]
        return Memory(
            reference.add(filling),
            self.recent.add(windows[len(filling) :], RECENT_HALF_LIFE_S),
            self.now.add(windows, NOW_HALF_LIFE_S),
            began_at,
        )

    def stored(self) -> dict[str, object]:
        parts = {name: getattr(self, name).stored() for name in ("reference", "recent", "now")}
        return {**parts, "began_at": self.began_at}

    @classmethod
    def read(cls, stored: Mapping[str, object]) -> Memory:
        parts = {name: Faded.read(stored[name]) for name in ("reference", "recent", "now")}  # type: ignore[arg-type]
        return cls(**parts, began_at=float(str(stored["began_at"])))


def _is_full(reference: Faded, began_at: float, at: float) -> bool:
    return at - began_at >= REFERENCE_S and reference.heard_s >= REFERENCE_SAMPLES


class Insights:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._after = ""
        self._stepped_at = self._compared_at = -math.inf

    def step(self) -> int:
        """One slice, now and then; the windows that it took. Call it again and again, in one worker. Raises
        StoreError."""
        now = self._core.now()
        if now - self._stepped_at < STEP_EVERY_S:
            return 0
        self._stepped_at = now
        taken = self._gather()
        if self._after == "" and now - self._compared_at >= COMPARE_EVERY_S:
            self._compared_at = now
            self.compare()
        return taken

    def catch_up(self) -> None:
        """Takes all that there is, and compares. Raises StoreError."""
        while self._gather() or self._after:
            pass
        self.compare()

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

    def compare(self) -> None:
        """All devices that were heard of lately; what was found before and is no more is forgotten."""
        now = self._core.now()
        with self._core.database.read() as session:
            rows = session.execute(
                select(Device.id, Device.name, Device.tier, Device.facts, ReferenceRow.digest, ReferenceRow.content)
                .join(ReferenceRow, and_(ReferenceRow.device == Device.id, ReferenceRow.digest == Device.running))
                .where(Device.standing == "active", Device.seen_at >= now - SILENT_S)
                .execution_options(yield_per=500)
            )
            names: dict[str, str] = {}
            groups: dict[tuple[str, ...], dict[str, Faded]] = {}
            found: list[Finding] = []
            for device, name, tier, facts, digest, content in rows:
                memory = Memory.read(content)
                names[device] = name
                groups.setdefault((digest, tier, facts.get("profile", "")), {})[device] = memory.now
                found += _drifts(device, name, digest, memory, now)
        for (digest, _, _), members in groups.items():
            found += [suspect_finding(one, names[one.device], digest, now) for one in peers.compare(members)]
        self._replace(found)

    def _replace(self, found: Sequence[Finding]) -> None:
        """`since` stays what it was for what goes on."""
        with self._core.database.write(shared=True) as session:
            known = {(row.device, row.kind, row.metric): row for row in session.scalars(select(FindingRow))}
            there = set(session.scalars(select(Device.id).where(Device.id.in_({one.device for one in found}))))
            for one in found:
                row = known.pop((one.device, one.kind, one.metric), None)
                since = one.since if row is None or row.digest != one.digest else row.since
                content = one.model_copy(update={"since": since}).model_dump(mode="json")
                if row is None and one.device in there:
                    row = FindingRow(device=one.device, kind=one.kind, metric=one.metric)
                    session.add(row)
                    self._core.note(
                        session, "service", f"insight.{one.kind}", one.name, metric=one.metric, text=one.text
                    )
                if row is not None:
                    row.digest, row.score, row.since, row.at, row.content = (
                        one.digest, one.score, since, one.at, content,
                    )  # fmt: skip
            for row in known.values():
                session.delete(row)
            session.execute(delete(ReferenceRow).where(ReferenceRow.digest.not_in(select(BundleRow.digest))))

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


def _drifts(device: str, name: str, digest: str, memory: Memory, now: float) -> list[Finding]:
    found = []
    for metric in ("inputs", "confidence"):
        before, recent = getattr(memory.reference, metric), getattr(memory.recent, metric)
        one = drift.compare(before, recent, memory.reference.heard_s, memory.recent.heard_s)
        if one is not None and one.is_drift:
            found.append(drift_finding(one, device, name, digest, metric, memory, now))
    return found

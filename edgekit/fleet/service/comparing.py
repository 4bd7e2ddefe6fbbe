"""All devices compared with each other and with themselves, some hundred at a time, and what was found kept."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, delete, select

from edgekit.fleet.protocol.insights import Finding
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.findings import drift_finding, suspect_finding
from edgekit.fleet.service.memory import Memory
from edgekit.fleet.store.tables import BundleRow, Device, ReferenceRow
from edgekit.fleet.store.tables import Finding as FindingRow
from edgekit.fleet.telemetry import drift, peers
from edgekit.fleet.telemetry.fading import Faded

SLICE = 1_000  # devices of one step, some 50 ms
SILENT_S = 3600.0  # who has sent nothing for so long is neither a peer nor a suspect


class Comparison:
    """Of the devices that were heard of lately, as of when it began."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._at = core.now()
        self._after = ""
        self._names: dict[str, str] = {}
        self._groups: dict[tuple[str, ...], dict[str, Faded]] = {}
        self._found: list[Finding] = []

    def step(self) -> bool:
        """Takes the next devices; whether those were the last, and what was found is kept: what was found before and is
        no more is forgotten then. Raises StoreError, and may be called again."""
        with self._core.database.read() as session:
            rows = session.execute(
                select(Device.id, Device.name, Device.tier, Device.facts, ReferenceRow.digest, ReferenceRow.content)
                .join(ReferenceRow, and_(ReferenceRow.device == Device.id, ReferenceRow.digest == Device.running))
                .where(Device.id > self._after, Device.standing == "active", Device.seen_at >= self._at - SILENT_S)
                .order_by(Device.id)
                .limit(SLICE)
            ).all()
        for device, name, tier, facts, digest, content in rows:
            memory = Memory.read(content)
            self._names[device], self._after = name, device
            self._groups.setdefault((digest, tier, facts.get("profile", "")), {})[device] = memory.now
            self._found += _drifts(device, name, digest, memory, self._at)
        if len(rows) == SLICE:
            return False
        suspects = [
            suspect_finding(one, self._names[one.device], digest, self._at)
            for (digest, _, _), members in self._groups.items()
            for one in peers.compare(members)
        ]
        self._keep([*self._found, *suspects])
        return True

    def _keep(self, found: Sequence[Finding]) -> None:
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


def _drifts(device: str, name: str, digest: str, memory: Memory, now: float) -> list[Finding]:
    found = []
    for metric in ("inputs", "confidence"):
        before, recent = getattr(memory.reference, metric), getattr(memory.recent, metric)
        one = drift.compare(before, recent, memory.reference.heard_s, memory.recent.heard_s)
        if one is not None and one.is_drift:
            found.append(drift_finding(one, device, name, digest, metric, memory, now))
    return found

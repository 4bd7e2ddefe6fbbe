"""The fleet at a glance, for pages: a few queries for all devices, groups and bundles together, never one for each.

A `Glance` is read at most every other second, however many look at it.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sqlalchemy import Row, Text, cast, select
from sqlalchemy.orm import Session

from edgekit.errors import AbsentError
from edgekit.fleet.protocol.people import GroupView
from edgekit.fleet.rollouts.selector import Selector
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.groups import DEFAULT_INTERVAL_S, INTERVALS_LOST
from edgekit.fleet.store.tables import BundleRow, Device, Group

FRESH_S = 2.0

# right: runs what it should; moving: on its way there; failed: it refused, the old slot answers; lost: not heard of
# for three of its intervals; idle: is to run nothing; revoked: heard no more.
CellState = Literal["right", "moving", "failed", "lost", "idle", "revoked"]
CELL_STATES: tuple[CellState, ...] = ("right", "moving", "failed", "lost", "idle", "revoked")


class Cell(NamedTuple):
    """A device as one of many. `labels`: its own; `seen_at` nan: never."""

    name: str
    tier: str
    labels: Mapping[str, str]
    state: CellState
    running: str | None
    wanted: str | None
    phase: str
    seen_at: float

    def all_labels(self) -> dict[str, str]:
        """As a selector sees it."""
        return {**self.labels, "name": self.name, "tier": self.tier}


@dataclass(frozen=True)
class GroupGlance:
    """`cells`: its active devices, by name."""

    view: GroupView
    cells: tuple[Cell, ...]

    @property
    def size(self) -> int:
        return len(self.cells)

    @property
    def counts(self) -> Counter[CellState]:
        return Counter(cell.state for cell in self.cells)


@dataclass(frozen=True)
class Glance:
    """`cells`: of all devices, by name. `loose`: active ones that no group holds. `names`: digest -> of the bundle."""

    at: float
    cells: tuple[Cell, ...]
    groups: tuple[GroupGlance, ...]
    loose: tuple[Cell, ...]
    names: Mapping[str, str] = field(default_factory=dict)

    def group(self, name: str) -> GroupGlance:
        """Raises AbsentError."""
        for found in self.groups:
            if found.view.name == name:
                return found
        raise AbsentError(f"no group {name:.63}", hint="the page of groups lists them")

    def counts(self) -> Counter[CellState]:
        return Counter(cell.state for cell in self.cells)


class Glances:
    """Safe to use from many threads."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._held: Glance | None = None
        self._read_at = -math.inf

    def now(self) -> Glance:
        """At most `FRESH_S` old. Raises StoreError."""
        with self._lock:
            if self._held is None or time.monotonic() - self._read_at > FRESH_S:
                self._held = self._read()
                self._read_at = time.monotonic()
            return self._held

    def forget(self) -> None:
        """The next look reads anew: something was changed here."""
        with self._lock:
            self._held = None

    def _read(self) -> Glance:
        now = self._core.now()
        with self._core.database.read() as session:
            groups = session.scalars(select(Group).order_by(Group.name)).all()
            names = dict(session.execute(select(BundleRow.digest, BundleRow.name)).tuples().all())
            rows = _devices(session)
        within = _Within(groups)
        held: list[list[Cell]] = [[] for _ in groups]
        cells, loose = [], []
        for row in rows:
            labels, places, interval_s = within.of(row)
            cell = _cell(row, labels, now - INTERVALS_LOST * interval_s)
            cells.append(cell)
            if cell.state != "revoked":
                for place in places:
                    held[place].append(cell)
                if not places:
                    loose.append(cell)
        seen = tuple(GroupGlance(_view(group, own), tuple(own)) for group, own in zip(groups, held, strict=True))
        return Glance(now, tuple(cells), seen, tuple(loose), names)


def _devices(session: Session) -> Sequence[Row]:
    """Labels as they are stored: what thousands share is read once."""
    phase = Device.slot["phase"].as_string().label("phase")
    labels = cast(Device.labels, Text).label("labels")
    columns = (Device.name, Device.tier, Device.standing, labels, Device.running, Device.wanted, Device.seen_at)
    return session.connection().execute(select(*columns, phase).order_by(Device.name)).all()


class _Within:
    """Which groups hold a device. Devices with the same labels are in the same ones, but where a selector asks for the
    name."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._selectors = [Selector.parse(group.selector) for group in groups]
        self._by_name = any(term.key == "name" for selector in self._selectors for term in selector.terms)
        self._known: dict[tuple[str, ...], tuple[dict[str, str], list[int], float]] = {}

    def of(self, row: Row) -> tuple[dict[str, str], list[int], float]:
        """(its labels, the groups' places, the shortest of their intervals)"""
        key = (row.labels, row.tier, row.name) if self._by_name else (row.labels, row.tier)
        found = self._known.get(key)
        if found is None:
            own = json.loads(row.labels)
            labels = {**own, "name": row.name, "tier": row.tier}
            places = [place for place, selector in enumerate(self._selectors) if selector.holds(labels)]
            interval_s = min((self._groups[place].interval_s for place in places), default=DEFAULT_INTERVAL_S)
            found = self._known[key] = (own, places, interval_s)
        return found


def _cell(row: Row, labels: dict[str, str], lost_at: float) -> Cell:
    seen_at = math.nan if row.seen_at is None else row.seen_at
    state: CellState
    if row.standing != "active":
        state = "revoked"
    elif not seen_at >= lost_at:
        state = "lost"
    elif row.running != row.wanted:
        state = "failed" if row.phase == "failed" else "moving"
    else:
        state = "right" if row.running is not None else "idle"
    return Cell(row.name, row.tier, labels, state, row.running, row.wanted, row.phase or "idle", seen_at)


def _view(group: Group, cells: Sequence[Cell]) -> GroupView:
    return GroupView(
        name=group.name,
        selector=group.selector,
        interval_s=group.interval_s,
        compare_share=group.compare_share,
        devices=len(cells),
        connected=sum(cell.state != "lost" for cell in cells),
        running=dict(Counter(cell.running or "" for cell in cells)),
        version=group.version,
    )

"""What every sync needs to know, in memory: who a device is, its group's settings, and its orders.

The database is the truth. Whatever changes an identity, an order or a group raises the clock's tick in the same
transaction and stamps the devices concerned with it; `refresh` reads what is stamped later than what is here. Whoever
is not found is looked for there too, so that a device which enrolled with another worker is known at its first call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from edgekit.errors import AuthenticationError, ForbiddenError
from edgekit.fleet.protocol.agents import BundleOrder, Desired, PlanOrder
from edgekit.fleet.rollouts.selector import Selector
from edgekit.fleet.service.groups import DEFAULT_INTERVAL_S
from edgekit.fleet.store.database import Database
from edgekit.fleet.store.tables import BundleRow, Clock, Device, Group
from edgekit.fleet.trust.tokens import hash_token

_COLUMNS = (
    Device.id,
    Device.name,
    Device.tier,
    Device.standing,
    Device.labels,
    Device.token_hash,
    Device.certificate_serial,
    Device.next_serial,
    Device.boot,
    Device.wanted,
    Device.kept,
    Device.plan,
    Device.taken,
    Device.generation,
    Device.changed_tick,
)


@dataclass(slots=True)
class Known:
    """A device as its row says, but for `taken`, which is ahead of it by what was stored since. `next_serial`: of a
    certificate that was issued and not yet used."""

    id: str
    name: str
    tier: str
    standing: str
    labels: dict[str, str]
    token_hash: str
    serial: str
    next_serial: str | None
    boot: str
    wanted: str | None
    kept: tuple[str, ...]
    plan: PlanOrder | None
    taken: int
    generation: int
    changed_tick: int
    interval_s: float = DEFAULT_INTERVAL_S
    compare_share: float = 0.0
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Settings:
    name: str
    selector: Selector
    interval_s: float
    compare_share: float


class Directory:
    """Safe to use from many threads; what it hands out is not to be changed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.RLock()
        self._tick = -1
        self._known: dict[str, Known] = {}
        self._by_token: dict[str, Known] = {}
        self._by_serial: dict[str, Known] = {}
        self._groups: tuple[_Settings, ...] = ()
        self._orders: dict[str, BundleOrder] = {}
        self._news: set[str] = set()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def tick(self) -> int:
        """Of the clock, up to which the changes are here."""
        return self._tick

    def refresh(self) -> tuple[str, ...]:
        """Takes over what has changed since the last time; the ids of the devices concerned. Raises StoreError."""
        with self._lock, self._database.read() as session:
            tick = session.execute(select(Clock.tick)).scalar_one_or_none() or 0
            if tick == self._tick:
                return ()
            regrouped = self._read_groups(session)
            rows = session.execute(select(*_COLUMNS).where(Device.changed_tick > self._tick)).all()
            for row in rows:
                self._put(session, row)
            gone = self._drop_removed(session)
            if regrouped:
                for known in self._known.values():
                    self._settle(known)
            self._tick = tick
            changed = (*(row.id for row in rows), *gone)
            self._news.update(changed)
            return changed

    def news(self) -> tuple[str, ...]:
        """Devices that any `refresh` found changed since this was asked the last time; for one listener."""
        with self._lock:
            found, self._news = tuple(self._news), set()
        return found

    def _read_groups(self, session: Session) -> bool:
        """Whether they are others than before."""
        rows = session.execute(select(Group.name, Group.selector, Group.interval_s, Group.compare_share))
        found = tuple(_Settings(name, Selector.parse(text), interval, share) for name, text, interval, share in rows)
        changed, self._groups = set(found) != set(self._groups), found
        return changed

    def _drop_removed(self, session: Session) -> tuple[str, ...]:
        if session.scalar(select(func.count()).select_from(Device)) == len(self._known):
            return ()
        there = set(session.scalars(select(Device.id)))
        gone = tuple(device for device in self._known if device not in there)
        for device in gone:
            self._forget(self._known.pop(device))
        return gone

    def _put(self, session: Session, row: Row[Any]) -> None:
        before = self._known.get(row.id)
        if before is not None:
            self._forget(before)
        plan = None if row.plan is None else PlanOrder.model_validate(row.plan)
        known = Known(
            row.id,
            row.name,
            row.tier,
            row.standing,
            row.labels,
            row.token_hash,
            row.certificate_serial,
            row.next_serial,
            row.boot,
            row.wanted,
            tuple(row.kept),
            plan,
            row.taken if before is None else max(row.taken, before.taken),
            row.generation,
            row.changed_tick,
        )
        self._settle(known)
        self._read_orders(session, (*known.kept, known.wanted))
        self._known[known.id] = known
        self._by_token[known.token_hash] = known
        for serial in filter(None, (known.serial, known.next_serial)):
            self._by_serial[serial] = known

    def _forget(self, known: Known) -> None:
        self._by_token.pop(known.token_hash, None)
        for serial in filter(None, (known.serial, known.next_serial)):
            self._by_serial.pop(serial, None)

    def _settle(self, known: Known) -> None:
        """Of the groups that hold it the shortest interval and the largest share."""
        labels = {**known.labels, "name": known.name, "tier": known.tier}
        held = [group for group in self._groups if group.selector.holds(labels)]
        known.groups = tuple(group.name for group in held)
        known.interval_s = min((group.interval_s for group in held), default=DEFAULT_INTERVAL_S)
        known.compare_share = max((group.compare_share for group in held), default=0.0)

    def _read_orders(self, session: Session, digests: Iterable[str | None]) -> None:
        """A bundle never changes: what is known of one stays."""
        lacking = [digest for digest in digests if digest is not None and digest not in self._orders]
        if not lacking:
            return
        rows = session.execute(
            select(BundleRow.digest, BundleRow.name, BundleRow.size_bytes).where(BundleRow.digest.in_(lacking))
        )
        for digest, name, size in rows:
            self._orders[digest] = BundleOrder(digest=digest, name=name, target=f"{digest}/index.json", size_bytes=size)

    def identify(self, token: str = "", serial: str = "") -> Known:
        """The device with this token or certificate. Raises AuthenticationError, ForbiddenError once it is revoked,
        StoreError."""
        key = serial or hash_token(token)
        known = self._find(key, serial)
        if known is None:
            self.refresh()
            known = self._find(key, serial)
        if known is None:
            what = "device is not known here"
            if serial:
                what = "device's certificate is not known here: it was replaced, or the device removed"
            raise AuthenticationError(
                f"this {what}", hint="edgekit fleet invite --device NAME, then edgekit agent enroll --again"
            )
        if known.standing != "active":
            raise ForbiddenError(f"the device {known.name} is revoked", hint="ask the operators of the fleet")
        return known

    def _find(self, key: str, serial: str) -> Known | None:
        # No secret is compared: a token's hash leads to it, and a serial comes with a proof of its key.
        return (self._by_serial if serial else self._by_token).get(key)

    def is_at_hand(self, token: str = "", serial: str = "") -> bool:
        """Whether `identify` would answer from memory."""
        known = self._find(serial or hash_token(token), serial)
        return known is not None and (not serial or serial != known.next_serial)  # whose first use is stored

    def get(self, device: str) -> Known:
        """Raises AuthenticationError."""
        known = self._known.get(device)
        if known is None:
            self.refresh()
            known = self._known.get(device)
        if known is None:
            raise AuthenticationError("this device is not known here", hint="edgekit agent enroll --again")
        return known

    def desired(self, device: str, now: float | None = None) -> Desired:
        """What the device is told. Raises AuthenticationError once it is removed, ForbiddenError once it is revoked."""
        known = self.get(device)
        if known.standing != "active":
            raise ForbiddenError(f"the device {known.name} is revoked", hint="ask the operators of the fleet")
        return Desired(
            generation=known.generation,
            bundle=self._orders.get(known.wanted) if known.wanted else None,
            kept=tuple(self._orders[digest] for digest in known.kept if digest in self._orders),
            plan=known.plan,
            compare_share=known.compare_share,
            interval_s=known.interval_s,
            taken=known.taken,
            labels=known.labels,
            now=now,
        )

    def groups_of(self, device: str) -> tuple[str, ...]:
        """Those that hold it; () for a device that is gone."""
        known = self._known.get(device)
        return () if known is None else known.groups

    def stored(self, device: str, taken: int, boot: str = "") -> None:
        """Windows up to `taken` are in the database now; `boot`: of the agent that said what it is, "" for none."""
        known = self._known.get(device)
        if known is not None:
            known.taken = max(known.taken, taken)
            known.boot = boot or known.boot

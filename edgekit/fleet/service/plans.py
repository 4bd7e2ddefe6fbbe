"""How each device should run its bundle, from what it measured itself; told to it as data.

The coordinator on the device re-plans from one request to the next; this is where it starts from, and what an operator
sees. The pass over the fleet takes some devices at a time, each at most every few minutes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from edgekit.bundle.manifest import Manifest
from edgekit.devices.device import Device as Profile
from edgekit.devices.device import load_device
from edgekit.errors import AbsentError, ConflictError, EdgekitError, PlanError, UnknownNameError
from edgekit.fleet.protocol.agents import PlanOrder
from edgekit.fleet.protocol.insights import Choice, LinkFigures, PlanView
from edgekit.fleet.rollouts.variants import MARGIN, Chosen, Rated, choose_variant, links_of, scaled
from edgekit.fleet.service.core import Core
from edgekit.fleet.service.manifests import Manifests
from edgekit.fleet.service.people import Actor
from edgekit.fleet.store.tables import Device, WindowRow
from edgekit.fleet.telemetry.histogram import percentile
from edgekit.fleet.telemetry.links import LinkSpan, Sighting, compute_scale, link_span
from edgekit.planning.choose import WORDS, plans
from edgekit.planning.plan import PlanLimits, Power, Way
from edgekit.planning.ways import power_of, ways

SPAN_S = 3600.0  # windows that began since then count
MOST_WINDOWS = 40  # the newest
SLICE = 40  # devices of one step
EVERY_S = 300.0  # a device's turn comes again
UNLIMITED_DROP = 1.0  # points, where the recipe names none: as `edgekit plan` has it

_COLUMNS = (Device.id, Device.name, Device.running, Device.facts, Device.plan)


@dataclass(frozen=True)
class _Priced:
    """A bundle on a kind of device, as predicted."""

    ways: tuple[Way, ...]
    power: Power | None
    limits: PlanLimits
    profile: str


@dataclass(frozen=True)
class _Found:
    """Of one device: what was measured, and what comes of it."""

    row: Row[Any]
    manifest: Manifest | None
    priced: _Priced | None
    span: LinkSpan | None
    scale: float
    scale_samples: int
    measured_ms: float
    chosen: Chosen | None
    note: str

    @property
    def told(self) -> PlanOrder | None:
        return None if self.row.plan is None else PlanOrder.model_validate(self.row.plan)

    @property
    def order(self) -> PlanOrder | None:
        """What it should be told; None where there is nothing to choose by."""
        if self.chosen is None:
            return None
        best = self.chosen.best
        return PlanOrder(digest=self.row.running, variant=best.plan.variant, rate=best.rate, why=self.chosen.why)


class Plans:
    def __init__(self, core: Core, manifests: Manifests) -> None:
        self._core, self._manifests = core, manifests
        self._price = lru_cache(maxsize=64)(self._priced)
        self._after = ""
        self._round_at = -math.inf

    def view(self, key: str) -> PlanView:
        """Of a device, by id or name. Raises AbsentError."""
        with self._core.database.read() as session:
            return self._view(self._find(session, self._row(session, key)))

    def replan(self, actor: Actor, key: str) -> PlanView:
        """The best now, without waiting for a margin. Raises AbsentError; ConflictError where there is nothing to
        choose by."""
        actor.need("operator")
        with self._core.database.read() as session:
            found = self._find(session, self._row(session, key), margin=0.0)
        if found.order is None:
            raise ConflictError(f"no plan for {found.row.name}: {found.note}", hint="edgekit fleet plan shows more")
        self._tell({found.row.id: found.order}, actor.name)
        return self.view(found.row.id)

    def step(self) -> int:
        """The next devices of the fleet; how many got another plan. Call it again and again, in one worker. Raises
        StoreError."""
        now = self._core.now()
        if self._after == "":
            if now - self._round_at < EVERY_S:
                return 0
            self._round_at = now
        with self._core.database.read() as session:
            digests = self._with_a_choice(session)
            rows = session.execute(
                select(*_COLUMNS)
                .where(Device.id > self._after, Device.tier == "device", Device.standing == "active")
                .where(Device.running.in_(digests), Device.seen_at >= now - SPAN_S)
                .order_by(Device.id)
                .limit(SLICE)
            ).all()
            found = [self._find(session, row) for row in rows]
        self._after = rows[-1].id if len(rows) == SLICE else ""
        changed = {one.row.id: one.order for one in found if one.order is not None and _differs(one.order, one.told)}
        self._tell(changed, "service")
        return len(changed)

    def _with_a_choice(self, session: Session) -> list[str]:
        """Bundles that can be run in more than one way, and not on the device alone."""
        running = session.scalars(select(Device.running).where(Device.running.is_not(None)).distinct())
        found = []
        for digest in running:
            try:
                manifest = self._manifests.get(str(digest))
            except AbsentError:
                continue
            if len(manifest.variants) > 1 and manifest.codecs:
                found.append(str(digest))
        return found

    def _tell(self, orders: Mapping[str, PlanOrder], actor: str) -> None:
        if not orders:
            return
        with self._core.database.write() as session:
            tick = self._core.database.tick(session)
            rows = session.scalars(select(Device).where(Device.id.in_(list(orders)))).all()
            told = [row for row in rows if row.running == orders[row.id].digest]
            for row in told:
                row.plan = orders[row.id].model_dump(mode="json")
                row.generation, row.changed_tick = row.generation + 1, tick
                self._core.note(session, actor, "device.plan", row.name, **row.plan)
        self._core.tell(tuple(row.id for row in told))

    def _row(self, session: Session, key: str) -> Row[Any]:
        row = session.execute(select(*_COLUMNS).where((Device.id == key) | (Device.name == key))).first()
        if row is None:
            raise AbsentError(f"no device {key}", hint="edgekit fleet devices lists them")
        return row

    def _find(self, session: Session, row: Row[Any], margin: float = MARGIN) -> _Found:
        nothing = _Found(row, None, None, None, 1.0, 0, math.nan, None, "")
        if row.running is None:
            return _with_note(nothing, "it runs nothing")
        try:
            manifest = self._manifests.get(row.running)
            priced = self._price(row.running, row.facts.get("profile", ""))
        except EdgekitError as error:
            return _with_note(nothing, error.message)
        sightings = _sightings(session, row.id, row.running, self._core.now() - SPAN_S)
        span = link_span(sightings)
        usual = None if span is None else span.usual
        rest = _rest_ms(priced, span, row.plan)
        scale, samples, measured_ms = compute_scale(sightings, priced.ways, lambda way: rest.get(way.variant, math.inf))
        chosen, note = None, ""
        if len(manifest.variants) < 2:
            note = "there is one way to run it"
        elif span is None:
            note = "no link was measured in the last hour: it decides by itself"
        else:
            current = (
                (row.plan["variant"], row.plan["rate"]) if row.plan and row.plan["digest"] == row.running else None
            )
            own = scaled(priced.ways, scale)
            try:
                chosen = choose_variant(own, usual, span.slow, priced.limits, priced.power, current, margin)
            except PlanError as error:
                note = error.message
        return _Found(row, manifest, priced, span, scale, samples, measured_ms, chosen, note)

    def _priced(self, digest: str, profile: str) -> _Priced:
        """Raises AbsentError, PlanError and DeviceError as `ways` does."""
        manifest = self._manifests.get(digest)
        device = _profile(profile, manifest.device)
        found = ways(manifest, device)
        allowed = manifest.provenance.recipe.get("max_drop")
        drop = float(allowed) if isinstance(allowed, int | float) else UNLIMITED_DROP
        return _Priced(found, power_of(device), PlanLimits(drop=drop), device.name)

    def _view(self, found: _Found) -> PlanView:
        row, chosen = found.row, found.chosen
        return PlanView(
            device=row.id,
            name=row.name,
            digest=row.running,
            bundle="" if found.manifest is None else found.manifest.name,
            profile="" if found.priced is None else found.priced.profile,
            link=None if found.span is None else _figures(found.span),
            scale=found.scale,
            scale_samples=found.scale_samples,
            measured_ms=None if math.isnan(found.measured_ms) else found.measured_ms,
            order=found.told,
            best=found.order,
            choices=() if chosen is None else tuple(_choice(one) for one in chosen.rated),
            note=found.note,
        )


def _profile(name: str, otherwise: str) -> Profile:
    try:
        return load_device(name or otherwise)
    except UnknownNameError:
        return load_device(otherwise)  # a machine that no profile describes: its own latencies correct it


def _sightings(session: Session, device: str, digest: str, since: float) -> list[Sighting]:
    """The newest windows of this bundle. Read without their whole check: they had it when they came."""
    query = (
        select(WindowRow.started_at, WindowRow.answered, WindowRow.content)
        .where(WindowRow.device == device, WindowRow.digest == digest, WindowRow.started_at >= since)
        .order_by(WindowRow.sequence.desc())
        .limit(MOST_WINDOWS)
    )
    found = []
    for at, answered, content in session.execute(query):
        link = content.get("link")
        latency = {int(bucket): count for bucket, count in content.get("latency", {}).items()}
        figures = None if link is None else (link["bandwidth_mbps"], link["rtt_ms"], link["loss"])
        found.append(Sighting(at, figures, content.get("plan", ""), percentile(latency, 0.5), answered))
    return found


def _rest_ms(priced: _Priced, span: LinkSpan | None, told: Mapping[str, Any] | None) -> dict[str, float]:
    """Variant -> what network, codecs and servers take of it by prediction: at the rate that was told, or the best."""
    found: dict[str, float] = {}
    links = links_of(None if span is None else span.usual)
    for plan in sorted(plans(priced.ways, links), key=lambda plan: plan.latency_ms):
        way = next(way for way in priced.ways if way.variant == plan.variant)
        own = way.exit_ms + sum(stage.share * stage.latency_ms for stage in way.stages if stage.tier == "device")
        is_told = told is not None and (told["variant"], told["rate"]) == (plan.variant, (*plan.rates, 0)[0])
        if plan.variant not in found or is_told:
            found[plan.variant] = max(0.0, plan.latency_ms - own)
    return found


def _with_note(found: _Found, note: str) -> _Found:
    return _Found(found.row, None, None, None, 1.0, 0, math.nan, None, note)


def _differs(order: PlanOrder, told: PlanOrder | None) -> bool:
    return told is None or (order.digest, order.variant, order.rate) != (told.digest, told.variant, told.rate)


def _figures(span: LinkSpan) -> LinkFigures:
    return LinkFigures(
        windows=span.windows,
        since=span.since,
        until=span.until,
        bandwidth_mbps=span.usual.bandwidth_mbps,
        rtt_ms=span.usual.rtt_ms,
        loss=span.usual.loss,
        slow_bandwidth_mbps=span.slow.bandwidth_mbps,
        slow_rtt_ms=span.slow.rtt_ms,
    )


def _choice(one: Rated) -> Choice:
    return Choice(
        variant=one.plan.variant,
        rate=one.rate,
        latency_ms=one.plan.latency_ms,
        slow_ms=one.slow_ms,
        drop=one.plan.drop,
        bytes_sent=one.plan.bytes_sent,
        energy_mj=one.plan.energy_mj,
        allowed=not one.broken,
        why=_broken(one.broken),
    )


def _broken(names: Sequence[str]) -> str:
    return f"past the limit on {' and '.join(WORDS[name] for name in names)}" if names else ""

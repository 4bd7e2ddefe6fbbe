"""Prometheus metrics of the service, in a registry of its own. Nothing in them names a device or a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client import Counter as Total
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import func, select

from edgekit.errors import StoreError
from edgekit.fleet.server.shared_counts import registries
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.glance import Cell
from edgekit.fleet.store.tables import Device, Rollout

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Of all workers, where they share their counts. `waiting`: has as many members as agents wait for new orders."""

    def __init__(self, service: FleetService, waiting: Any) -> None:
        self._service, self._waiting = service, waiting
        entered, self._told = registries()
        self._sync_s = Histogram(
            "edgekit_fleet_sync_seconds",
            "From a call of an agent to the commit that holds it",
            registry=entered,
            buckets=_SECONDS,
        )
        self._windows = Total("edgekit_fleet_windows_received", "Windows of telemetry", registry=entered)
        self._totals = {
            name: Total(f"edgekit_fleet_intake_{name}", told, registry=entered)
            for name, told in (
                ("calls", "Calls stored"),
                ("windows", "Windows stored"),
                ("refused", "Calls refused because too many waited"),
                ("failed", "Calls that could not be stored"),
                ("commits", "Transactions of the intake"),
            )
        }
        self._entered = dict.fromkeys(self._totals, 0)
        self._intake_waiting = _held("intake_waiting", "Calls that wait to be stored", entered)
        self._agents_waiting = _held("agents_waiting", "Agents that wait for new orders", entered)
        self._known = _held("directory_devices", "Devices known in memory", entered, "livemax")
        self._told.register(_Counted(service))

    def synced(self, seconds: float, windows: int) -> None:
        self._sync_s.observe(seconds)
        self._windows.inc(windows)

    def enter(self) -> None:
        """What this worker counted since; now and then, so that other ones can tell it."""
        counts = self._service.devices.intake.counts
        for name, total in self._totals.items():
            value = getattr(counts, name)
            total.inc(value - self._entered[name])
            self._entered[name] = value
        self._intake_waiting.set(counts.waiting)
        self._agents_waiting.set(len(self._waiting))
        self._known.set(len(self._service.devices.directory))

    def render(self) -> bytes:
        """In the text format. Asks the database; where that is down `edgekit_fleet_database_up` is 0."""
        self.enter()
        return bytes(generate_latest(self._told))


def _held(name: str, told: str, registry: CollectorRegistry, together: Any = "livesum") -> Gauge:
    return Gauge(f"edgekit_fleet_{name}", told, registry=registry, multiprocess_mode=together)


def _state_of(cell: Cell) -> tuple[str, str, str]:
    """(standing, whether it is connected, phase)"""
    if cell.state == "revoked":
        return "revoked", "no", cell.phase
    return "active", "no" if cell.state == "lost" else "yes", cell.phase


class _Counted:
    """Of the whole fleet, counted by the database."""

    def __init__(self, service: FleetService) -> None:
        self._service = service

    def collect(self) -> Iterator[Any]:
        try:
            families = list(self._families())
        except StoreError:
            families = []
        yield _gauge("database_up", "Whether the database answers", [((), int(bool(families)))])
        yield from families

    def _families(self) -> Iterator[Any]:
        states = Counter(map(_state_of, self._service.glances.now().cells))
        with self._service.database.read() as session:
            running = session.execute(
                select(Device.running, func.count()).where(Device.standing == "active").group_by(Device.running)
            ).all()
            rollouts = session.execute(select(Rollout.state, func.count()).group_by(Rollout.state)).all()
        signed, found = self._service.trust.ends(), self._service.insights.count()
        yield _gauge(
            "devices",
            "Devices, by their standing, whether they were heard of lately, and what they do",
            list(states.items()),
            ("standing", "connected", "phase"),
        )
        yield _gauge(
            "running",
            "Active devices, by the bundle they answer with",
            [((d or "",), n) for d, n in running],
            ("digest",),
        )
        yield _gauge("rollouts", "Rollouts, by state", [((state,), count) for state, count in rollouts], ("state",))
        yield _gauge(
            "findings",
            "Devices unlike their peers (suspect), and unlike they were at first (drift)",
            [((kind,), count) for kind, count in found.items()],
            ("kind",),
        )
        yield _gauge(
            "signed_until_timestamp_seconds",
            "When the signed metadata of a role ends",
            [((role,), at) for role, at in signed.items()],
            ("role",),
        )


def _gauge(
    name: str, told: str, values: Iterable[tuple[tuple[str, ...], float]], labels: tuple[str, ...] = ()
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"edgekit_fleet_{name}", told, labels=labels)
    for held, value in values:
        family.add_metric(held, value)
    return family

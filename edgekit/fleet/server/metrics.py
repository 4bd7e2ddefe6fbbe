"""Prometheus metrics of the service, in a registry of its own. Nothing in them names a device or a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as Total
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import func, select

from edgekit.errors import StoreError
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.groups import DEFAULT_INTERVAL_S, INTERVALS_LOST
from edgekit.fleet.store.tables import Device, Rollout

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """`waiting`: has as many members as agents wait for new orders."""

    def __init__(self, service: FleetService, waiting: Any) -> None:
        self._registry = CollectorRegistry()
        self._sync_s = Histogram(
            "edgekit_fleet_sync_seconds",
            "From a call of an agent to the commit that holds it",
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._windows = Total("edgekit_fleet_windows_received", "Windows of telemetry", registry=self._registry)
        self._registry.register(_Intake(service, waiting))
        self._registry.register(_Counted(service))

    def synced(self, seconds: float, windows: int) -> None:
        self._sync_s.observe(seconds)
        self._windows.inc(windows)

    def render(self) -> bytes:
        """In the text format. Asks the database; where that is down `edgekit_fleet_database_up` is 0."""
        return bytes(generate_latest(self._registry))


class _Intake:
    """Of this worker."""

    def __init__(self, service: FleetService, waiting: Any) -> None:
        self._service, self._waiting = service, waiting

    def collect(self) -> Iterator[Any]:
        counts = self._service.devices.intake.counts
        yield _gauge("intake_waiting", "Calls that wait to be stored", [((), counts.waiting)])
        yield _gauge("agents_waiting", "Agents that wait for new orders", [((), len(self._waiting))])
        yield _gauge("directory_devices", "Devices known in memory", [((), len(self._service.devices.directory))])
        for name, told, value in (
            ("intake_calls", "Calls stored", counts.calls),
            ("intake_windows", "Windows stored", counts.windows),
            ("intake_refused", "Calls refused because too many waited", counts.refused),
            ("intake_failed", "Calls that could not be stored", counts.failed),
            ("intake_commits", "Transactions of the intake", counts.commits),
        ):
            family = CounterMetricFamily(f"edgekit_fleet_{name}", told)
            family.add_metric((), value)
            yield family


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
        lost_at = self._service.core.now() - INTERVALS_LOST * DEFAULT_INTERVAL_S
        phase = Device.slot["phase"].as_string()
        with self._service.database.read() as session:
            states = session.execute(
                select(Device.standing, Device.seen_at >= lost_at, phase, func.count()).group_by(
                    Device.standing, Device.seen_at >= lost_at, phase
                )
            ).all()
            running = session.execute(
                select(Device.running, func.count()).where(Device.standing == "active").group_by(Device.running)
            ).all()
            rollouts = session.execute(select(Rollout.state, func.count()).group_by(Rollout.state)).all()
        signed = self._service.trust.ends()
        yield _gauge(
            "devices",
            "Devices, by their standing, whether they were heard of lately, and what they do",
            [((one, "yes" if heard else "no", what or ""), count) for one, heard, what, count in states],
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

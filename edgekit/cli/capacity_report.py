"""What `edgekit capacity` says: tables for people, one object for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle.manifest import Tier
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.cli.wording import number_text, percent_text, size_text

if TYPE_CHECKING:
    from edgekit.capacity.demand import Arrivals, Objective
    from edgekit.capacity.sizing import Sizing
    from edgekit.capacity.tiers import Stop


@dataclass(frozen=True)
class Report:
    bundle: Path
    objective: Objective
    devices: int
    rate: float
    arrivals: Arrivals
    stops: list[Stop]
    sizings: Mapping[Tier, Sizing]
    prices: Mapping[str, float]

    def per_hour(self, tier: Tier) -> float | None:
        return self.prices[tier] * self.sizings[tier].replicas if tier in self.prices else None

    @property
    def simulated(self) -> str:
        return (
            f"the figures for {self.devices:,} devices are simulation, not measurement: one replica at its share of "
            f"{self.devices * self.rate:,.0f} requests a second, five times {len(self.arrivals):,} requests "
            f"({self.arrivals.name}) in virtual time; + is how far the true percentile may lie above (95 %)"
        )

    def payload(self) -> dict[str, Any]:
        known = [self.per_hour(tier) for tier in self.sizings]
        return {
            "bundle": str(self.bundle),
            "devices": self.devices,
            "rate_hz": self.rate,
            "total_hz": self.devices * self.rate,
            "slo": {"share": self.objective.share, "limit_ms": self.objective.limit_ms},
            "note": self.simulated,
            "cost_per_hour": sum(cost for cost in known if cost is not None) if None not in known else None,
            "replica_hours_per_hour": sum(sizing.replicas for sizing in self.sizings.values()),
            "tiers": {stop.tier: self._tier(stop) for stop in self.stops},
        }

    def _tier(self, stop: Stop) -> dict[str, Any]:
        sizing = self.sizings[stop.tier]
        service, overhead, guess = sizing.replica.service, sizing.replica.overhead, sizing.forecast
        return {
            "part": stop.part.name,
            "replicas": sizing.replicas,
            "devices_per_replica": self.devices / sizing.replicas,
            "requests_per_replica_hz": sizing.each_hz,
            "most_per_replica_hz": sizing.replica.most_per_s,
            "cost_per_hour": self.per_hour(stop.tier),
            "binds": sizing.binding,
            "slo_ms": sizing.objective.limit_ms,
            "simulated": {
                "percentile_ms": sizing.latency_ms,
                "percentile_at_most_ms": sizing.estimate.at_most_ms,
                "mean_ms": sizing.outcome.mean_ms,
                "wait_ms": _mean(sizing.outcome.wait_ms),
                "rows": _mean(sizing.outcome.rows),
                "utilisation": sizing.outcome.utilisation,
                "refused": sizing.outcome.refused,
                "fewer_replicas": sizing.fewer_replicas,
                "fewer_replicas_ms": sizing.fewer.percentile_ms,
            },
            "formulae": guess
            and {
                "method": guess.method,
                "percentile_ms": 1e3 * guess.percentile_s,
                "mean_ms": 1e3 * guess.mean_s,
                "wait_ms": 1e3 * guess.wait_s,
                "rows": guess.rows,
                "utilisation": guess.utilisation,
                "bulk_bound_mean_ms": 1e3 * guess.bound_s,
            },
            "disagreement": sizing.disagreement,
            "balance": {
                "servers": sizing.balance.servers,
                "random_ms": sizing.balance.random_ms,
                "two_choices_ms": sizing.balance.two_choices_ms,
            },
            "service": {
                "origin": service.origin,
                "fixed_ms": 1e3 * service.fixed_s,
                "one_row_ms": 1e3 * service.seconds(1),
                "full_batch_ms": 1e3 * service.seconds(sizing.replica.batching.max_batch),
                "residuals": {str(rows): error for rows, error in service.residuals},
            },
            "request": {
                "origin": overhead.origin,
                "work_ms": 1e3 * overhead.request_s,
                "batch_work_ms": 1e3 * overhead.batch_s,
                "hop_ms": 1e3 * overhead.hop_s,
                "up_bytes": stop.up_bytes,
                "down_bytes": stop.down_bytes,
                "link_ms": 1e3 * sizing.replica.crossing.latency_s,
            },
        }


def _mean(values: Any) -> float:
    return float(values.mean()) if len(values) else math.nan


def show(out: Output, plan: Report) -> None:
    from edgekit.capacity.sizing import MEANING

    columns = [
        Column("tier", style="cyan"),
        Column("replicas", number=True),
        Column("devices each", number=True),
        Column("requests/s each", number=True),
        Column("busy", number=True),
        Column("rows a batch", number=True),
        Column("queue ms", number=True),
        Column(f"p{100 * plan.objective.share:g} ms", number=True),
        Column("formulae", number=True),
        Column("an hour", number=True),
        Column("binds"),
    ]
    rows = []
    for tier, sizing in plan.sizings.items():
        cost, guess = plan.per_hour(tier), sizing.forecast
        rows.append(
            (
                tier,
                Cell(f"{sizing.replicas:,}", "bold"),
                f"{plan.devices / sizing.replicas:,.0f}",
                number_text(sizing.each_hz, 1),
                percent_text(sizing.outcome.utilisation),
                number_text(_mean(sizing.outcome.rows), 1),
                number_text(_mean(sizing.outcome.wait_ms), 2),
                f"{sizing.latency_ms:.1f} +{sizing.estimate.above_ms:.1f}",
                "-" if guess is None else f"{1e3 * guess.percentile_s:.1f} ({sizing.disagreement:+.0%})",
                f"{sizing.replicas:,} replica h" if cost is None else f"{cost:,.2f}",
                sizing.binding,
            )
        )
    out.table(Table(columns, rows))
    out.line()
    for tier, sizing in plan.sizings.items():
        out.table(facts(_facts(plan, tier, sizing, MEANING[sizing.binding]), tier if len(plan.sizings) > 1 else ""))
    out.line(plan.simulated)


def _facts(plan: Report, tier: Tier, sizing: Sizing, binds: str) -> list[tuple[str, str | Cell]]:
    replica, balance, stop = sizing.replica, sizing.balance, next(one for one in plan.stops if one.tier == tier)
    service, batch = replica.service, replica.batching.max_batch
    worst = max((abs(error) for _, error in service.residuals), default=0.0)
    found: list[tuple[str, str | Cell]] = [
        ("binds", binds),
        (
            "model",
            f"{stop.part.name}: 1 row {1e3 * service.seconds(1):.3g} ms, {batch} rows "
            f"{1e3 * service.seconds(batch):.3g} ms; {service.origin}; the fit is within {worst:.0%}",
        ),
        (
            "node",
            f"{1e3 * replica.overhead.request_s:.3g} ms of work a request and "
            f"{1e3 * replica.overhead.batch_s:.3g} ms a batch, {1e3 * replica.overhead.hop_s:.3g} ms on the way; "
            f"{replica.overhead.origin}",
        ),
        (
            "crossing",
            f"{size_text(stop.up_bytes)} up, {size_text(stop.down_bytes)} down"
            + (f", {1e3 * replica.crossing.latency_s:.3g} ms" if replica.crossing.link else "; no --link counted"),
        ),
        ("most", f"{replica.most_per_s:.4g} requests a second of one replica, in full batches"),
    ]
    if sizing.replicas > 1:
        fewer = sizing.fewer
        less = "cannot keep up" if math.isinf(fewer.percentile_ms) else f"{fewer.percentile_ms:.4g} ms"
        found.append((f"with {sizing.fewer_replicas:,}", less))
        found.append(
            (
                "balanced",
                f"{balance.servers} together: {balance.random_ms:.4g} ms where requests go anywhere, "
                f"{balance.two_choices_ms:.4g} ms to the less busy of two",
            )
        )
    return found

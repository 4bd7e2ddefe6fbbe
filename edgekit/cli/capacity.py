"""`edgekit capacity`"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.bundle.manifest import Tier
from edgekit.cli.command import command as make_command
from edgekit.cli.options import file_option, option
from edgekit.cli.output import Cell, Column, Output, Table, facts
from edgekit.cli.quantities import Milliseconds, Size, read_link
from edgekit.cli.wording import number_text, percent_text, size_text
from edgekit.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.capacity.demand import Arrivals, Objective
    from edgekit.capacity.replica import Overhead, Replica
    from edgekit.capacity.service import Service
    from edgekit.capacity.sizing import Sizing
    from edgekit.capacity.tiers import Stop
    from edgekit.devices.device import Device
    from edgekit.planning.link import Link

LOAD, SERVER, PATH, MODEL = "The load", "Each replica", "The way there", "How it is found"
TIERS: tuple[Tier, ...] = ("edge", "cloud")


@make_command(
    """
    edgekit capacity cats.edgekit --devices 1000000 --rate 0.2 --slo p99=200ms
    edgekit capacity cats.edgekit --devices 20000 --rate 1 --slo p95=80ms --link 10mbps,20ms --price edge=0.1,cloud=1.2
    edgekit capacity cats.edgekit --devices 5000 --rate 2 --slo p99=50ms --on edge=x86-server --request-cost 0.5ms
    """,
    name="capacity",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@option("--devices", heading=LOAD, type=click.IntRange(1), required=True, metavar="N", help="How many ask.")
@option(
    "--rate",
    heading=LOAD,
    type=click.FloatRange(0, min_open=True),
    required=True,
    metavar="HZ",
    help="Requests a second of each, on average.",
)
@option("--slo", heading=LOAD, required=True, metavar="pN=TIME", help="Answered within, like p99=200ms; links counted.")
@file_option("--arrivals", heading=LOAD, help="A CSV file of times in seconds, for their shape; Poisson without.")
@option("--tier", heading=SERVER, type=click.Choice(TIERS), help="That one alone.")
@option("--variant", heading=SERVER, metavar="NAME", help="The way of running it; the first that leaves the device.")
@option(
    "--workers",
    heading=SERVER,
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Batches side by side; fewer where memory does not hold them.",
)
@option(
    "--threads",
    heading=SERVER,
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Of each worker.",
)
@option("--cores", heading=SERVER, type=click.IntRange(1), metavar="N", help="Of each; as many as its threads without.")
@option("--memory", heading=SERVER, type=Size(), metavar="SIZE", help="Of each; this machine's or the profile's.")
@option(
    "--max-batch",
    heading=SERVER,
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    metavar="N",
    help="Rows.",
)
@option(
    "--max-delay-ms",
    heading=SERVER,
    type=click.FloatRange(0, 1000),
    default=0.0,
    show_default=True,
    metavar="F",
    help="Wait so long for more to run together.",
)
@option(
    "--queue",
    heading=SERVER,
    type=click.IntRange(1, 100_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Requests that may wait.",
)
@option("--price", heading=SERVER, metavar="TIER=N,...", help="Of a replica for an hour, in any currency.")
@option("--link", heading=PATH, metavar="LINK", help="Between device and server: 10mbps,20ms; none counted without.")
@option("--edge-link", heading=PATH, metavar="LINK", help="Between edge and cloud.")
@option("--port", heading=PATH, default="1gbps", show_default=True, metavar="RATE", help="Of each replica's network.")
@option(
    "--on",
    "profiles",
    heading=MODEL,
    multiple=True,
    metavar="TIER=PROFILE",
    help="Predict run times from a device profile instead of measuring them on this machine.",
)
@option(
    "--request-cost",
    heading=MODEL,
    type=Milliseconds(),
    metavar="TIME",
    help="The node's own work on a request; measured against a node here without.",
)
@option(
    "--seconds",
    heading=MODEL,
    type=click.FloatRange(0.2, 600),
    default=3.0,
    show_default=True,
    metavar="F",
    help="Of measuring each part.",
)
@option(
    "--requests",
    heading=MODEL,
    type=click.IntRange(1000, 2_000_000),
    default=20_000,
    show_default=True,
    metavar="N",
    help="Simulated for each number of replicas.",
)
@option(
    "--seed",
    heading=MODEL,
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of arrivals and of chance.",
)
def command(out: Output, bundle: Path, **settings: Any) -> None:
    """How many replicas of each tier carry a load within a latency objective, what they cost, and what binds.

    The run times of BUNDLE's parts and the node's own work are measured on this machine for a few seconds. One replica
    at its share of the load is then simulated with the policies of the real server; queueing formulae stand beside it.
    Requests are raw tensors of one row: what decoding a codec's frames costs a server is not counted. Where nothing
    meets the objective the nearest that can be met is named (exit code 14).
    """
    from edgekit.bundle import Bundle
    from edgekit.capacity.demand import Arrivals, Objective
    from edgekit.capacity.sizing import size
    from edgekit.capacity.tiers import stops

    objective = Objective.parse(settings["slo"])
    prices = _by_tier(settings["price"], "--price", float)
    profiles = _by_tier(",".join(settings["profiles"]) or None, "--on", str)
    arrivals = (
        Arrivals.read(settings["arrivals"])
        if settings["arrivals"]
        else Arrivals.poisson(settings["requests"], settings["seed"])
    )
    links = _links(out, settings)
    rate_hz = settings["devices"] * settings["rate"]
    with Bundle.open(bundle) as opened, out.working() as progress:
        found = stops(opened.manifest, settings["variant"], settings["tier"])
        replicas = []
        for index, stop in enumerate(found):
            progress(f"measure {stop.part.name}", index, len(found))
            link = links["cloud" if index else "device"]
            replicas.append(_replica(out, opened, stop, link, profiles.get(stop.tier), settings))
        objectives = _shares(objective, replicas)
        sizings = {
            stop.tier: size(one, rate_hz, part, arrivals, seed=settings["seed"], progress=progress)
            for stop, one, part in zip(found, replicas, objectives, strict=True)
        }
    plan = _Plan(bundle, objective, settings["devices"], settings["rate"], arrivals, found, sizings, prices)
    out.emit(plan.payload())
    if not out.json:
        _show(out, plan)


@dataclass(frozen=True)
class _Plan:
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
            f"{self.devices * self.rate:,.0f} requests a second, {len(self.arrivals):,} requests "
            f"({self.arrivals.name}) in virtual time"
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
                "mean_ms": sizing.outcome.mean_ms,
                "wait_ms": _mean(sizing.outcome.wait_ms),
                "rows": _mean(sizing.outcome.rows),
                "utilisation": sizing.outcome.utilisation,
                "refused": sizing.outcome.refused,
                "one_replica_less_ms": sizing.fewer_ms,
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
                "hop_ms": 1e3 * overhead.hop_s,
                "up_bytes": stop.up_bytes,
                "down_bytes": stop.down_bytes,
                "link_ms": 1e3 * sizing.replica.crossing.latency_s,
            },
        }


def _mean(values: Any) -> float:
    return float(values.mean()) if len(values) else math.nan


def _by_tier(text: str | None, name: str, kind: type) -> dict[str, Any]:
    """`edge=0.1,cloud=1.2`. Raises UsageError."""
    found: dict[str, Any] = {}
    for entry in text.split(",") if text else ():
        tier, equals, value = entry.partition("=")
        try:
            if tier.strip() not in TIERS or not equals or tier.strip() in found:
                raise ValueError
            found[tier.strip()] = kind(value.strip())
            if kind is float and not 0 <= found[tier.strip()] < math.inf:
                raise ValueError
        except ValueError:
            example = "edge=0.1,cloud=1.2" if kind is float else "edge=jetson-agx-orin"
            raise UsageError(f"{name} {text!r}: {entry!r} cannot be read", hint=f"like {example}") from None
    return found


def _links(out: Output, settings: Mapping[str, Any]) -> dict[str, Link | None]:
    names = {"device": "link", "cloud": "edge_link"}
    return {
        end: read_link(out, settings[key], f"--{key.replace('_', '-')}") if settings[key] else None
        for end, key in names.items()
    }


def _replica(
    out: Output, bundle: Bundle, stop: Stop, link: Link | None, profile: str | None, settings: dict[str, Any]
) -> Replica:
    from edgekit.capacity.calibration import is_batchable
    from edgekit.capacity.replica import Crossing, Replica, fitting_workers
    from edgekit.devices.device import load_device
    from edgekit.devices.machine import this_machine
    from edgekit.planning.link import Link
    from edgekit.runtimes.server.schedule import BatchOptions

    device = load_device(profile) if profile else None
    most = settings["max_batch"] if is_batchable(stop.part) else 1
    memory = settings["memory"] or (device.memory_bytes if device else this_machine().memory_bytes)
    workers = min(settings["workers"], fitting_workers(stop.part, most, memory))
    if workers < settings["workers"]:
        out.warn(
            f"{stop.tier}: {workers} of {settings['workers']} workers fit the memory of a replica",
            "more --memory, or a smaller --max-batch",
        )
    cores = settings["cores"] or workers * settings["threads"]
    alone = _service(bundle, stop, device, most, settings)
    return Replica(
        service=alone.slowed(*_crowding(stop, device, workers, cores, settings["threads"])),
        batching=BatchOptions(most, settings["max_delay_ms"] if most > 1 else 0.0, settings["queue"], workers),
        overhead=_overhead(bundle, stop, settings),
        crossing=Crossing(stop.up_bytes, stop.down_bytes, link),
        shares_cores=workers * settings["threads"] >= cores,
        port_mbps=Link.parse(settings["port"]).bandwidth_mbps,
    )


def _service(bundle: Bundle, stop: Stop, device: Device | None, most: int, settings: dict[str, Any]) -> Service:
    from edgekit.capacity.calibration import batch_sizes, measure_service
    from edgekit.capacity.probe import Cores
    from edgekit.capacity.service import predict_service

    threads = settings["threads"]
    sizes = batch_sizes(stop.part, most)
    if device is not None:
        return predict_service(stop.part, device, sizes if most > 1 else [1, 2], threads)
    return measure_service(
        bundle, stop.part, sizes, threads, seconds=settings["seconds"], cores=Cores.divide(threads).node
    )


def _crowding(stop: Stop, device: Device | None, workers: int, cores: int, threads: int) -> tuple[float, float]:
    """How much longer arithmetic and memory take where all workers run at once."""
    from edgekit.capacity.service import contention

    crowded = max(1.0, workers * threads / cores)
    if device is None:
        return crowded, crowded
    compute, memory = contention(device, stop.part.format, workers, threads)
    return max(compute, crowded), max(memory, crowded)


def _overhead(bundle: Bundle, stop: Stop, settings: dict[str, Any]) -> Overhead:
    from edgekit.capacity.replica import Overhead

    if settings["request_cost"] is not None:
        return Overhead(settings["request_cost"] / 1e3, origin="as stated")
    try:
        from edgekit.capacity.overhead import measure_overhead
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "grpcio", "serve", "measuring a node's own work") from error
    from edgekit.capacity.probe import Cores

    threads = settings["threads"]
    words = ("--threads", str(threads), "--max-batch", str(settings["max_batch"]))
    return measure_overhead(
        bundle.path,
        bundle.manifest.name,
        stop.part,
        stop.tier,
        words,
        model_threads=threads,
        seconds=min(settings["seconds"], 3.0),
        cores=Cores.divide(threads),
    )


def _shares(objective: Objective, replicas: list[Replica]) -> list[Objective]:
    """Of several tiers each gets the time in proportion to what it takes when idle. Percentiles of the tiers are added
    up, which is on the safe side."""
    whole = sum(replica.floor_s for replica in replicas)
    if len(replicas) == 1 or whole <= 0:
        return [objective] * len(replicas)
    return [replace(objective, limit_ms=objective.limit_ms * replica.floor_s / whole) for replica in replicas]


def _show(out: Output, plan: _Plan) -> None:
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
                number_text(sizing.latency_ms, 1),
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


def _facts(plan: _Plan, tier: Tier, sizing: Sizing, binds: str) -> list[tuple[str, str | Cell]]:
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
            f"{1e3 * replica.overhead.request_s:.3g} ms of work a request, {1e3 * replica.overhead.hop_s:.3g} ms on "
            f"the way; {replica.overhead.origin}",
        ),
        (
            "crossing",
            f"{size_text(stop.up_bytes)} up, {size_text(stop.down_bytes)} down"
            + (f", {1e3 * replica.crossing.latency_s:.3g} ms" if replica.crossing.link else "; no --link counted"),
        ),
        ("most", f"{replica.most_per_s:.4g} requests a second of one replica, in full batches"),
    ]
    if sizing.replicas > 1:
        less = "cannot keep up" if math.isinf(sizing.fewer_ms) else f"{sizing.fewer_ms:.4g} ms"
        found.append(("one replica less", less))
        found.append(
            (
                "balance",
                f"{balance.servers} together: {balance.random_ms:.4g} ms where requests go anywhere, "
                f"{balance.two_choices_ms:.4g} ms to the less busy of two",
            )
        )
    return found

"""`edgekit capacity`"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.bundle.manifest import Tier
from edgekit.cli.capacity_report import Report, show
from edgekit.cli.command import command as make_command
from edgekit.cli.options import FiniteRange, file_option, option
from edgekit.cli.output import Output
from edgekit.cli.quantities import Milliseconds, Size, read_link
from edgekit.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.capacity.demand import Objective
    from edgekit.capacity.replica import Overhead, Replica
    from edgekit.capacity.service import Service
    from edgekit.capacity.tiers import Stop
    from edgekit.devices.device import Device
    from edgekit.planning.link import Link

LOAD, SERVER, PATH, MODEL = "The load", "Each replica", "The way there", "How it is found"
TIERS: tuple[Tier, ...] = ("edge", "cloud")


@make_command(
    """
    edgekit capacity cats.edgekit --devices 1000000 --rate 0.2 --slo p99=200ms
    edgekit capacity cats.edgekit --devices 20000 --rate 1 --slo p95=80ms --link 10mbps,20ms \\
        --price edge=0.1,cloud=1.2
    edgekit capacity cats.edgekit --devices 5000 --rate 2 --slo p99=50ms --on edge=x86-server \\
        --request-cost 0.5ms
    """,
    name="capacity",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@option("--devices", heading=LOAD, type=click.IntRange(1, 10**9), required=True, metavar="N", help="How many ask.")
@option(
    "--rate",
    heading=LOAD,
    type=FiniteRange(0, 1000, min_open=True),
    required=True,
    metavar="HZ",
    help="Requests a second of each, on average.",
)
@option(
    "--steps",
    heading=LOAD,
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Of a request to an iterated part (tokens, windows): the rate and the time are counted by the step.",
)
@option(
    "--slo",
    heading=LOAD,
    required=True,
    metavar="pN=TIME",
    help="Answered within, links counted: p99=200ms, or p99=200; 1s.",
)
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
    type=FiniteRange(0, 1000),
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
    type=FiniteRange(0.2, 600),
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
    Parts are timed on raw tensors of one row a request: what decoding a codec's frames costs is not counted. Where
    nothing meets the objective the nearest that can be met is named (exit code 14).
    """
    from edgekit.bundle import Bundle
    from edgekit.capacity.demand import Arrivals, Objective
    from edgekit.capacity.sizing import size
    from edgekit.capacity.tiers import stops

    objective = Objective.parse(settings["slo"])
    prices = _by_tier(settings["price"], "--price", float)
    profiles = _profiles(settings["profiles"])
    settings["port_mbps"] = _port_mbps(settings["port"])
    arrivals = (
        Arrivals.read(settings["arrivals"])
        if settings["arrivals"]
        else Arrivals.poisson(settings["requests"], settings["seed"])
    )
    links = _links(out, settings)
    with Bundle.open(bundle) as opened, out.working() as progress:
        found = stops(opened.manifest, settings["variant"], settings["tier"])
        steps = _steps(out, found, settings["steps"])
        rate_hz = settings["devices"] * settings["rate"] * steps
        replicas = []
        for index, stop in enumerate(found):
            progress(f"measure {stop.part.name}", index, len(found))
            link = links["cloud" if index else "device"]
            replicas.append(_replica(out, opened, stop, link, profiles.get(stop.tier), settings))
        objectives = _shares(replace(objective, limit_ms=objective.limit_ms / steps), replicas)
        sizings = {
            stop.tier: size(one, rate_hz, part, arrivals, seed=settings["seed"], progress=progress)
            for stop, one, part in zip(found, replicas, objectives, strict=True)
        }
    report = Report(bundle, objective, settings["devices"], settings["rate"], arrivals, found, sizings, prices)
    out.emit(report.payload())
    if not out.json:
        show(out, report)


def _steps(out: Output, found: list[Stop], steps: int | None) -> int:
    """How many a request takes. A percentile of a sum is below the sum of the percentiles, so that a step that holds
    its share of the time holds the whole. Raises UsageError where an iterated part's steps are not told."""
    iterated = [stop.part.name for stop in found if stop.part.loop is not None]
    if iterated and steps is None:
        raise UsageError(
            f"{iterated[0]} is iterated: a request takes as many steps as it has tokens or windows",
            hint="--steps N says how many; the sizing then counts steps",
        )
    if steps is not None and not iterated:
        raise UsageError("--steps without an iterated part", hint="leave it out")
    if iterated:
        out.remark(f"counted by the step: {steps} a request, each with 1/{steps} of its time")
    return steps or 1


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


def _profiles(entries: Sequence[str]) -> dict[str, Device]:
    """Raises UsageError, UnknownNameError: before anything is measured."""
    from edgekit.devices.device import load_device

    return {tier: load_device(name) for tier, name in _by_tier(",".join(entries) or None, "--on", str).items()}


def _port_mbps(text: str) -> float:
    """Raises UsageError."""
    from edgekit.planning.link import Link

    try:
        return Link.parse(text).bandwidth_mbps
    except UsageError as error:
        raise UsageError(f"--port {text!r} is no bandwidth", hint="like 1gbps or 100mbps") from error


def _links(out: Output, settings: Mapping[str, Any]) -> dict[str, Link | None]:
    names = {"device": "link", "cloud": "edge_link"}
    return {
        end: read_link(out, settings[key], f"--{key.replace('_', '-')}") if settings[key] else None
        for end, key in names.items()
    }


def _replica(
    out: Output, bundle: Bundle, stop: Stop, link: Link | None, device: Device | None, settings: dict[str, Any]
) -> Replica:
    from edgekit.capacity.calibration import is_batchable
    from edgekit.capacity.replica import Crossing, Replica, fitting_workers
    from edgekit.devices.machine import this_machine
    from edgekit.runtimes.server.schedule import BatchOptions

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
        overhead=_overhead(bundle, stop, alone, most, settings),
        crossing=Crossing(stop.up_bytes, stop.down_bytes, link),
        shares_cores=workers * settings["threads"] >= cores,
        port_mbps=settings["port_mbps"],
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


def _overhead(bundle: Bundle, stop: Stop, service: Service, most: int, settings: dict[str, Any]) -> Overhead:
    from edgekit.capacity.replica import Overhead

    if settings["request_cost"] is not None:
        return Overhead(settings["request_cost"] / 1e3, origin="as stated")
    try:
        from edgekit.capacity.overhead import measure_overhead
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "grpcio", "serve", "measuring a node's own work") from error
    from edgekit.capacity.probe import Cores

    threads = settings["threads"]
    return measure_overhead(
        bundle.path,
        bundle.manifest.name,
        stop.part,
        stop.tier,
        service,
        ("--threads", str(threads)),
        max_batch=most,
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

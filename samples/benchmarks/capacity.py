"""The capacity model against a real node: simulated and measured throughput and p95 at several loads and settings.

python samples/benchmarks/capacity.py [--models fashion-cnn efficientnet-lite0] [--seconds 12]

Goal: throughput within 10 %, p95 within 20 %. The model is calibrated first (the bundle's session at several batch
sizes, one request after another and a closed loop against a node), then node and simulation get the same arrivals:
Poisson, seeded, at shares of what the model says a node can do; the last share is beyond it. Node and client are
processes on cores of their own, one thread computes. Errors are of the simulation, relative to the measurement.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from common import environment, rounded, save
from serving import scratch, zoo_bundle

from edgekit.bundle import Bundle
from edgekit.capacity.calibration import batch_sizes, measure_service, pinned
from edgekit.capacity.demand import Arrivals, Objective
from edgekit.capacity.overhead import measure_overhead
from edgekit.capacity.probe import Caller, Cores, serving
from edgekit.capacity.queueing import forecast
from edgekit.capacity.replica import Overhead, Replica
from edgekit.capacity.service import Service
from edgekit.capacity.simulation import Simulation
from edgekit.errors import PlanError
from edgekit.runtimes.server.schedule import BatchOptions
from edgekit.zoo.efficientnet import efficientnet_lite0
from edgekit.zoo.fashion import fashion_cnn

MODELS = {"fashion-cnn": fashion_cnn, "efficientnet-lite0": efficientnet_lite0}
SETTINGS = (BatchOptions(1), BatchOptions(4), BatchOptions(16), BatchOptions(16, 4.0))
LOADS = (0.3, 0.6, 0.8, 1.3)
P95 = Objective(0.95, 1.0)
MOST_REQUESTS = 20_000


def compare(
    path: Path, name: str, part: Any, options: BatchOptions, service: Service, overhead: Overhead, seconds: float
) -> list[dict[str, Any]]:
    """One row a load, all on one node."""
    replica = Replica(service, options, overhead)
    words = ("--max-batch", str(options.max_batch), "--max-delay-ms", str(options.max_delay_ms), "--threads", "1")
    cores, rows = Cores.divide(), []
    with (
        serving(path, "device", words, cores.node) as served,
        pinned(cores.client),
        Caller(served, name, part) as caller,
    ):
        caller.warm_up()
        caller.together(options.max_batch + 8, 1.5)  # the node learns its pace
        for load in LOADS:
            rate = load * replica.most_per_s
            arrivals = Arrivals.poisson(min(MOST_REQUESTS, max(200, int(rate * seconds))), seed=int(100 * load))
            due = arrivals.at(rate)
            before = caller.counted()
            measured, simulated = caller.send(due), Simulation(replica).run(due)
            ran, runs, _ = (now - then for now, then in zip(caller.counted(), before, strict=True))
            kept = measured.latency_ms[int(0.1 * len(due)) :]
            rows.append(
                {
                    "load": load,
                    "offered_hz": rate,
                    "requests": len(due),
                    "client_late_ms": measured.sent_late_ms,
                    "refused": [measured.refused, simulated.refused],
                    "rows": [ran / max(1, runs), float(simulated.rows.mean())],
                    **_pair("hz", _answered_hz(measured.latency_ms, due), simulated.answered_hz),
                    **_pair("p95_ms", _p95(kept), _p95(simulated.latency_ms)),
                    **_pair("p50_ms", _p50(kept), _p50(simulated.latency_ms)),
                    "formulae_p95_ms": _formulae(replica, rate),
                }
            )
    return rows


def _answered_hz(latency_ms: np.ndarray, due_s: np.ndarray) -> float:
    """Over the span of the arrivals behind the warm-up, as the simulation counts."""
    first = int(0.1 * len(due_s))
    return float(np.isfinite(latency_ms[first:]).sum() / (due_s[-1] - due_s[first]))


def _p95(latency_ms: np.ndarray) -> float:
    """Of those that were answered."""
    return P95.value_ms(latency_ms[np.isfinite(latency_ms)])


def _p50(latency_ms: np.ndarray) -> float:
    return float(np.median(latency_ms[np.isfinite(latency_ms)]))


def _pair(name: str, measured: float, simulated: float) -> dict[str, float]:
    return {
        f"measured_{name}": measured,
        f"simulated_{name}": simulated,
        f"{name}_error_percent": 100 * (simulated / measured - 1),
    }


def _formulae(replica: Replica, rate: float) -> float | None:
    try:
        return 1e3 * forecast(replica, rate, P95.share).percentile_s
    except PlanError:
        return None


def measure(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    path = zoo_bundle(MODELS[name], folder)
    cores = Cores.divide()
    with Bundle.open(path) as bundle:
        part, called = bundle.manifest.part(), bundle.manifest.name
        service = measure_service(bundle, part, batch_sizes(part, 16), 1, seconds=4.0, cores=cores.node)
    overhead = measure_overhead(path, called, part, "device", service, ("--threads", "1"), seconds=3.0, cores=cores)
    rows = {}
    for options in SETTINGS:
        label = f"batch {options.max_batch}, wait {options.max_delay_ms:g} ms"
        rows[label] = compare(path, called, part, options, service, overhead, seconds)
        for row in rows[label]:
            print(name, label, rounded(row, 3), flush=True)
    flat = [row for each in rows.values() for row in each]
    return {
        "one_row_ms": 1e3 * service.seconds(1),
        "sixteen_rows_ms": 1e3 * service.seconds(16),
        "fit_residuals": dict(service.residuals),
        "own_work_ms": 1e3 * overhead.request_s,
        "batch_work_ms": 1e3 * overhead.batch_s,
        "hop_ms": 1e3 * overhead.hop_s,
        "settings": rows,
        "throughput_error_percent": _spread([row["hz_error_percent"] for row in flat]),
        "p95_error_percent": _spread([row["p95_ms_error_percent"] for row in flat]),
    }


def _spread(errors: list[float]) -> dict[str, float]:
    sizes = [abs(error) for error in errors]
    return {"median": statistics.median(sizes), "largest": max(sizes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=12.0)
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    for name in arguments.models:
        with scratch() as folder:
            result[name] = rounded(measure(name, folder, arguments.seconds))
        print(name, result[name]["throughput_error_percent"], result[name]["p95_error_percent"], flush=True)
    if set(result) == set(MODELS):
        facts = environment(1, ("onnxruntime", "grpcio", "protobuf"))
        print("written:", save("capacity", {**facts, "cores": str(Cores.divide()), "models": result}))


if __name__ == "__main__":
    main()

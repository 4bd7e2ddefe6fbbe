"""Coordinated latency on a real bundle: every policy on six traces, in virtual time and then in real time.

    python samples/benchmarks/policies.py --bundle out/efficientnet-lite0-split.edgekit [--requests 40]

Three tables. Virtual time: `edgekit simulate` on costs measured here (servers) and predicted (the device): regret
against the per-request oracle, distance to the best single policy. Real time: fixed plans on steady links, measured
latency beside the prediction and the bound (rooflines + bytes / bandwidth + RTT / 2 each way). Real time: the policies
on the traces, answers compared with the float model's. The device's pace is emulated (samples/coordinated.py).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import environment, rounded, save

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Tier
from edgekit.devices.device import Device, load_device
from edgekit.devices.latency import predict
from edgekit.planning.choose import bound_ms
from edgekit.planning.comparison import Setting, compare
from edgekit.planning.link import Link
from edgekit.planning.named_traces import TRACES, trace_named
from edgekit.planning.plan import Hop, Way, evaluate
from edgekit.planning.simulate import Workload
from edgekit.planning.ways import power_of, ways
from edgekit.runtimes.codecs.base import open_codec
from edgekit.runtimes.load import load
from samples.coordinated import EDGE_CLOUD, Hierarchy, named, run_cell
from samples.demo import float_classes, views

STEADY = {"steady-1": Link(1, 60), "steady-10": Link(10, 20), "steady-100": Link(100, 4)}
REAL_POLICIES = ("local", "offload", "split", "three-tier", "auto")
WORKLOAD = Workload(requests=360, rate_hz=3.0, deadline_ms=300.0)
THINK_MS = 100.0


def measured_costs(bundle: Bundle, device: Device, repeats: int = 15) -> dict[str, float]:
    """Median ms: parts above the device and codecs as they run here, one thread; the device's parts as predicted."""
    costs: dict[str, float] = {}
    manifest = bundle.manifest
    for part in manifest.parts:
        if part.tier == "device":
            costs[part.name] = predict(part.segments, device, part.format).latency_ms
            continue
        with load(bundle, part=part.name, threads=1) as session:
            feeds = {
                s.name: np.zeros([1 if isinstance(d, str) else d for d in s.shape], s.dtype) for s in session.inputs
            }
            costs[part.name] = _median_ms(lambda run=session.run, feeds=feeds: run(feeds), repeats)
    for entry in manifest.codecs:
        tables = bundle.asset_path(entry.tables).read_bytes() if entry.tables else None
        codec = open_codec(entry, tables)
        rng = np.random.default_rng(0)
        arrays = [
            rng.standard_normal([1 if isinstance(d, str) else d for d in spec.shape]).astype(np.float32)
            for spec in codec.features
        ]
        rate = len(entry.rates) // 2
        payload = codec.encode(arrays, rate)
        shapes = [array.shape for array in arrays]
        costs[f"encode:{entry.name}"] = _median_ms(lambda c=codec, a=arrays, r=rate: c.encode(a, r), repeats)
        costs[f"decode:{entry.name}"] = _median_ms(
            lambda c=codec, p=payload, s=shapes, r=rate: c.decode(p, s, r), repeats
        )
    return costs


def _median_ms(call: Any, repeats: int) -> float:
    laps = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        call()
        laps.append(1e3 * (time.perf_counter() - start))
    return statistics.median(laps[2:])


def virtual(bundle: Bundle, found: Sequence[Way], device: Device, max_drop: float) -> dict[str, Any]:
    manifest = bundle.manifest
    raw = {
        codec.name: sum(entry.spec().size_bytes for entry in codec.features) / (4 if codec.kind == "image" else 1)
        for codec in manifest.codecs
    }
    setting = Setting(
        ways=found,
        workload=WORKLOAD,
        max_drop=max_drop,
        above={("edge", "cloud"): EDGE_CLOUD},
        power=power_of(device),
        image_codecs=frozenset(codec.name for codec in manifest.codecs if codec.kind == "image"),
        raw_bytes=raw,
    )
    comparison = compare(setting, [trace_named(name) for name in TRACES])
    rows: dict[str, Any] = {}
    for trace, by_policy in comparison.rows.items():
        rows[trace] = {
            name: {
                "mean_ms": row.run.mean_ms,
                "p50_ms": row.run.percentile_ms(0.5),
                "p95_ms": row.run.percentile_ms(0.95),
                "regret": row.regret,
                "admissible": row.admissible,
                "plan": row.detail,
            }
            for name, row in by_policy.items()
        }
        rows[trace]["behind_best_single"] = comparison.behind_best_single(trace)
        rows[trace]["best_single"] = comparison.best_single(trace)
    names = {name for by_policy in comparison.rows.values() for name in by_policy}
    return {"traces": rows, "overall_ms": {name: comparison.overall_ms(name) for name in sorted(names)}}


def fixed_plans(hierarchy: Hierarchy, found: Sequence[Way], requests: int) -> list[dict[str, Any]]:
    """Each way at its finest and its coarsest rate on each steady link."""
    feeds = views()
    reference = np.zeros(len(feeds), int)
    rows = []
    for name, link in STEADY.items():
        links: dict[Hop, Link] = {("device", "edge"): link, ("edge", "cloud"): EDGE_CLOUD}
        for way in found:
            if way.local_share > 0:
                continue
            ladder = len(way.crossings[0].rates) if way.crossings else 0
            for rate in sorted({0, max(ladder - 1, 0)}):
                rates = [rate, *(0 for _ in way.crossings[1:])][: len(way.crossings)]
                kind = "local" if way.is_local else "offload" if way.stages[0].tier != "device" else "split"
                kind = "three-tier" if "cloud" in way.tiers and "edge" in way.tiers else kind
                policy = "local" if way.is_local else f"{kind}:{way.variant}@{rate}"
                cell = run_cell(
                    hierarchy, trace_named(name), policy, feeds, reference,
                    requests=requests, think_ms=20.0, deadline_ms=20_000.0, max_drop=None,
                )  # fmt: skip
                predicted = evaluate(way, rates, links).latency_ms
                rows.append(
                    {
                        "link": name,
                        "policy": policy,
                        "predicted_ms": predicted,
                        "measured_p50_ms": cell.p50_ms,
                        "error": abs(predicted / cell.p50_ms - 1),
                        "bound_ms": bound_ms(way, rates, links),
                        "times_bound": cell.p50_ms / bound_ms(way, rates, links),
                        "times_paced_bound": cell.p50_ms / _paced_bound(way, rates, links),
                        "degraded": cell.degraded,
                    }
                )
                print("  ", {k: v if isinstance(v, str) else round(v, 3) for k, v in rows[-1].items()}, flush=True)
                if way.is_local:
                    break
    return rows


def _paced_bound(way: Way, rates: Sequence[int], links: dict[Hop, Link]) -> float:
    """The bound where the device computes at the pace that is emulated: what a coordinator on it can be blamed for."""
    device = sum(stage.latency_ms - stage.bound_ms for stage in way.stages if stage.tier == "device")
    return bound_ms(way, rates, links) + device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("out/efficientnet-lite0-split.edgekit"))
    parser.add_argument("--requests", type=int, default=40, help="answers per policy and trace in real time")
    parser.add_argument("--max-drop", type=float, default=3.0)
    parser.add_argument("--skip-real", action="store_true", help="virtual time only")
    options = parser.parse_args()
    with Bundle.open(options.bundle) as bundle:
        manifest = bundle.manifest
        device = load_device(manifest.device)
        costs = measured_costs(bundle, device)
        servers: dict[Tier, Device] = {tier: load_device(name) for tier, name in manifest.tiers.items()}
        found = ways(manifest, device, servers, costs)
        result: dict[str, Any] = {
            **environment(1, ("onnxruntime", "ai-edge-litert", "grpcio")),
            "model": manifest.name,
            "device": f"{device.name} (pace emulated)",
            "max_drop": options.max_drop,
            "workload": asdict(WORKLOAD),
            "costs_ms": costs,
            "virtual": virtual(bundle, found, device, options.max_drop),
        }
    for trace, row in result["virtual"]["traces"].items():
        print(trace, {k: round(v["mean_ms"], 1) for k, v in row.items() if isinstance(v, dict)}, flush=True)
        print(
            "   regret of edgekit", round(row["edgekit"]["regret"], 4), "behind", row["behind_best_single"], flush=True
        )
    if not options.skip_real:
        with Hierarchy(options.bundle) as hierarchy:
            rows = fixed_plans(hierarchy, found, max(8, options.requests // 4))
            result["plans"] = rows
            result["median_error"] = statistics.median(row["error"] for row in rows)
            feeds = views()
            reference = float_classes(feeds)
            cells = []
            for trace in named(list(TRACES)):
                for policy in REAL_POLICIES:
                    cell = run_cell(
                        hierarchy, trace, policy, feeds, reference, requests=options.requests,
                        think_ms=THINK_MS, deadline_ms=WORKLOAD.deadline_ms, max_drop=options.max_drop,
                    )  # fmt: skip
                    cells.append(asdict(cell))
                    print("  ", cell, flush=True)
            result["real"] = cells
    save("policies", rounded(result))


if __name__ == "__main__":
    main()

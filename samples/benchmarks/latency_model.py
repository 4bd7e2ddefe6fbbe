"""Predicted against measured latency: twenty-four networks through ONNX Runtime on this machine, float and int8.

    python samples/benchmarks/latency_model.py [--threads 1] [--cpu-time] [--write-calibration]

Each network's prediction is made with efficiencies fitted on the other networks (leave-one-out), beside those that
come from the probe of this machine and from the reference calibration. `--write-calibration` makes the fit over all
networks the reference that ships (devices/calibration-cpu-x86_64.toml). Weights are random: their values do not matter.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from architectures import ARCHITECTURES, Architecture

from edgekit.costs import segments
from edgekit.devices.calibration import Fit, Hardware, Run, estimate_ms, fit_efficiency, reference_calibration
from edgekit.devices.device import Device
from edgekit.devices.kernels import measure_dispatch_us, measure_rates
from edgekit.devices.latency import bandwidth_gbps, peak_gflops, predict
from edgekit.devices.machine import this_machine
from edgekit.devices.probe import probe
from edgekit.errors import EdgekitError
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.progress import silent
from edgekit.quantizers.quantize import QuantizerOptions, mostly_convolutions, quantize
from edgekit.registry import EXPORTERS
from edgekit.runtimes.session import Session, SessionOptions
from edgekit.token_pruning import prune_tokens

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "latency_model.json"
CALIBRATION = HERE.parents[1] / "devices" / "calibration-cpu-x86_64.toml"
ROUNDS = 4
ROUND_SECONDS = 0.4
DISPATCH_PRIOR_US = 2.0


@dataclass
class Measured:
    """One network at one precision; `times_ms` over all rounds."""

    network: str
    precision: str
    run: Run
    session: Session
    feeds: dict[str, np.ndarray]
    times_ms: list[float]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.times_ms)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    device = probe(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(_prepare(arguments.only or list(ARCHITECTURES), device, Path(folder), arguments.threads))
        for _ in range(ROUNDS):
            for row in rows:
                _time(row, time.thread_time if arguments.cpu_time else time.perf_counter)
        for row in rows:
            row.session.close()
    runs = [Run(f"{row.network}/{row.precision}", row.run.segments, row.median_ms) for row in rows]
    unit = device.unit("cpu")
    hardware = Hardware(
        {precision: peak_gflops(unit, precision, arguments.threads) for precision in unit.peak_gflops},
        bandwidth_gbps(unit, arguments.threads),
    )
    prior = Fit(dict(reference_calibration("cpu-x86_64").values), DISPATCH_PRIOR_US)
    held_out = leave_one_out(runs, hardware, prior)
    others = {
        "probe": [predict(run.segments, device, "onnx", arguments.threads).latency_ms for run in runs],
        "leave_one_out": held_out,
    }
    clock = "thread CPU time" if arguments.cpu_time else "wall clock"
    report = _report(runs, rows, others, device, arguments.threads, clock)
    _print(report)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.write_calibration:
        everything = fit_efficiency(runs, hardware, prior)
        spread = float(np.exp(np.quantile(np.abs(np.log(report_ratio(held_out, runs))), 0.9)))
        _write_calibration(everything, spread, hardware, device)


def leave_one_out(runs: Sequence[Run], hardware: Hardware, prior: Fit) -> list[float]:
    """Each run's prediction in ms from a fit that saw neither precision of its network."""
    predicted = []
    for run in runs:
        network = run.name.partition("/")[0]
        others = [other for other in runs if other.name.partition("/")[0] != network]
        predicted.append(estimate_ms(run.segments, hardware, fit_efficiency(others, hardware, prior)))
    return predicted


def report_ratio(predicted: Sequence[float], runs: Sequence[Run]) -> np.ndarray:
    return np.array(predicted) / np.array([run.measured_ms for run in runs])


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's, without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])


def _prepare(names: Sequence[str], device: Device, folder: Path, threads: int) -> Iterator[Measured]:
    exporter = EXPORTERS.load("onnx")()
    plain = QuantizerOptions(observer="min-max", equalize=False, bias_correction=False, learned_rounding=False)
    for name in names:
        architecture: Architecture = ARCHITECTURES[name]
        torch.manual_seed(0)
        sample = {"input": architecture.example()}
        model = Model(name, architecture.module(), sample, ("output",), calibration=(sample,))
        captured = Capture()(prune_tokens(model, architecture.pruned, 1.0, silent))
        for precision in ("fp32", "int8" if mostly_convolutions(captured) else "int8-dynamic"):
            try:
                model = captured
                if precision != "fp32":
                    model = quantize(captured, precision, exporter.scheme(device), plain, (), silent)
                artifact = exporter.export(model, folder, device)
            except EdgekitError as error:
                print(f"left out: {name} {precision}: {error.message}")
                continue
            session = artifact.open(captured, SessionOptions(threads=threads))
            print(f"{name} {precision}: ready", flush=True)
            feeds = {"input": sample["input"].numpy()}
            run = Run(f"{name}/{precision}", segments(model, precision), 1.0)
            yield Measured(name, precision, run, session, feeds, [])


def _time(row: Measured, clock: Callable[[], float]) -> None:
    """Adds a round; networks take turns, so that a slow minute of the machine hits all of them."""
    call = row.session.bare(row.feeds)
    call()
    start = time.perf_counter()
    while time.perf_counter() - start < ROUND_SECONDS:
        before = clock()
        call()
        row.times_ms.append((clock() - before) * 1e3)


def _report(
    runs: Sequence[Run],
    rows: Sequence[Measured],
    predicted: dict[str, list[float]],
    device: Device,
    threads: int,
    clock: str,
) -> dict[str, object]:
    machine = this_machine()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    measured = [run.measured_ms for run in runs]
    quality = {}
    for name, values in predicted.items():
        error = np.abs(report_ratio(values, runs) - 1)
        quality[name] = {
            "median_error": float(np.median(error)),
            "p90_error": float(np.quantile(error, 0.9)),
            "rank_correlation": rank_correlation(values, measured),
        }
    return {
        "schema_version": 1,
        "device": machine.cpu,
        "isa": list(machine.isa),
        "threads": threads,
        "clock": clock,
        "commit": commit.stdout.strip() or "uncommitted",
        "onnxruntime": version("onnxruntime"),
        "python": platform.python_version(),
        "bandwidth_gbps": device.unit("cpu").bandwidth_gbps,
        "networks": len({row.network for row in rows}),
        "quality": quality,
        "runs": [
            {
                "network": row.network,
                "precision": row.precision,
                "runs": len(row.times_ms),
                "median_ms": round(row.median_ms, 4),
                "leave_one_out_ms": round(predicted["leave_one_out"][index], 4),
                "probe_ms": round(predicted["probe"][index], 4),
                "gflop": round(sum(segment.flops for segment in row.run.segments) / 1e9, 4),
            }
            for index, row in enumerate(rows)
        ],
    }


def _print(report: dict[str, object]) -> None:
    rows, quality = report["runs"], report["quality"]
    assert isinstance(rows, list) and isinstance(quality, dict)
    print(f"\n{'network':24s} {'':5s} {'measured':>9s} {'left out':>9s} {'':>6s} {'probe':>9s}   ms")
    for row in rows:
        error = row["leave_one_out_ms"] / row["median_ms"] - 1
        print(
            f"{row['network']:24s} {row['precision']:5s} {row['median_ms']:9.3f} {row['leave_one_out_ms']:9.3f} "
            f"{error:+6.0%} {row['probe_ms']:9.3f}"
        )
    for name, values in quality.items():
        print(
            f"{name}: median error {values['median_error']:.1%}, 90 % within {values['p90_error']:.1%}, "
            f"rank correlation {values['rank_correlation']:.3f}"
        )
    print(f"{report['device']}, {', '.join(report['isa'])}, threads {report['threads']}")  # type: ignore[arg-type]


def _write_calibration(fit: Fit, spread: float, hardware: Hardware, device: Device) -> None:
    """The spread on other machines was found on published figures, and is kept."""
    reference = reference_calibration("cpu-x86_64")
    rates = measure_rates(1)
    unit = device.unit("cpu")
    kernels = {key: rate / peak_gflops(unit, key.partition("/")[2], 1) for key, rate in rates.items()}
    lines = [
        "# Written by samples/benchmarks/latency_model.py --write-calibration.",
        "",
        f'source = "{device.title}, {", ".join(unit.isa)}, ONNX Runtime {version("onnxruntime")}, one thread"',
        f"spread_measured = {spread:.3f}",
        f"spread_transferred = {reference.spread:.3f}",
        f"dispatch_us = {fit.dispatch_us:.3f}",
        f"dispatch_ratio = {fit.dispatch_us / measure_dispatch_us():.3f}",
        f"bandwidth_gbps = {hardware.bandwidth_gbps:.2f}",
        "",
        "[efficiency]",
        *(f'"{key}" = {value:.4f}' for key, value in sorted(fit.values.items())),
        "",
        "# The probe's kernels on the same machine, as fractions of its peak.",
        "[kernels]",
        *(f'"{key}" = {value:.4f}' for key, value in sorted(kernels.items())),
    ]
    CALIBRATION.write_text("\n".join(lines) + "\n")
    print(f"wrote {CALIBRATION.name}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicted against measured latency on this machine.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(ARCHITECTURES), help="a few of the networks")
    parser.add_argument("--cpu-time", action="store_true", help="the thread's own time: for a busy machine, one thread")
    parser.add_argument("--write-calibration", action="store_true")
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads != 1:
        parser.error("--cpu-time counts the calling thread only: it goes with --threads 1")
    return arguments


if __name__ == "__main__":
    main()

"""Simulated beside real time: the same requests through the simulation and through the link emulator, one by one.

    python samples/benchmarks/replay.py [--seconds 20]

Computing is slept on both sides, so that links and the simulation's account of them are what is compared; jitter and
losses are left out, since each side throws dice of its own. A plan like EfficientNet-Lite0's split on a Raspberry Pi 4,
and the whole picture without loss. What a busy machine adds to every sleep counts as error: the load stands beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace
from typing import Any

from common import environment, rounded, save
from tcp_server import ANY, answering, dial, request, tcp_server

from edgekit.planning.named_traces import trace_named
from edgekit.planning.plan import Crossing, RateCost, StageCost, Way
from edgekit.planning.policies import Fixed
from edgekit.planning.simulate import Workload, simulate
from edgekit.planning.traces import Trace
from edgekit.planning.world import Choice
from edgekit.runtimes.link.emulator import LinkEmulator

TRACES = ("steady-10", "lte", "wifi-walk", "outages")
RATE_HZ = 3.0
ANSWER = 4000
TAIL_MS = 4.0


def way(name: str, device_ms: float, size_bytes: int) -> Way:
    stages = (StageCost("head", "device", device_ms), StageCost("tail", "edge", TAIL_MS))
    return Way(name, stages, (Crossing("codec", ("device", "edge"), (RateCost(size_bytes, 0.0),)),), ANSWER)


PLANS = (way("split", 16.2, 1900), way("picture", 9.0, 60_000))


def still(trace: Trace) -> Trace:
    """Without jitter and losses."""
    return replace(trace, pieces=tuple(replace(piece, jitter_ms=0.0, loss=0.0) for piece in trace.pieces))


def in_real_time(address: tuple[str, int], plan: Way, trace: Trace, requests: int) -> list[float]:
    size_bytes = int(plan.crossings[0].rates[0].size_bytes)
    latencies: list[float] = []
    with (
        LinkEmulator(ANY, address, trace.pieces[0]) as emulator,
        dial((emulator.host, emulator.port)) as near,
    ):
        time.sleep(0.2)
        emulator.set(trace)
        began = time.perf_counter()
        for index in range(requests):
            came = began + index / RATE_HZ
            time.sleep(max(0.0, came - time.perf_counter()))
            time.sleep(plan.stages[0].latency_ms / 1e3)
            near.sendall(request(size_bytes))
            left = ANSWER
            while left > 0:
                left -= len(near.recv(left))
            latencies.append(1e3 * (time.perf_counter() - came))
    return latencies


def compare(address: tuple[str, int], plan: Way, name: str, seconds: float) -> dict[str, Any]:
    trace, requests = still(trace_named(name)), max(3, round(seconds * RATE_HZ))
    workload = Workload(requests=requests, rate_hz=RATE_HZ, deadline_ms=60_000.0)
    simulated = simulate(Fixed(plan.variant, Choice(plan, (0,))), trace, workload).latencies_ms
    real = in_real_time(address, plan, trace, requests)
    errors = [abs(a - b) / a for a, b in zip(real, simulated, strict=True)]
    return {
        "trace": name,
        "plan": plan.variant,
        "requests": requests,
        "simulated_mean_ms": statistics.fmean(simulated),
        "real_mean_ms": statistics.fmean(real),
        "median_error": statistics.median(errors),
        "p95_error": sorted(errors)[int(0.95 * (len(errors) - 1))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    seconds = min(max(parser.parse_args().seconds, 2.0), 120.0)
    print(f"{'trace':12}{'plan':10}{'simulated ms':>14}{'real ms':>10}{'median error':>14}{'p95 error':>11}")
    rows = []
    with tcp_server(answering(ANSWER, TAIL_MS)) as address:
        for name in TRACES:
            for plan in PLANS:
                row = compare(address, plan, name, seconds)
                rows.append(row)
                figures = f"{row['simulated_mean_ms']:14.1f}{row['real_mean_ms']:10.1f}"
                print(
                    f"{name:12}{plan.variant:10}{figures}{row['median_error']:14.1%}{row['p95_error']:11.1%}",
                    flush=True,
                )
    result = {"rate_hz": RATE_HZ, "load_average": os.getloadavg()[0], "rows": rows}
    print("written:", save("replay", {**environment(1, ()), **rounded(result)}))


if __name__ == "__main__":
    main()

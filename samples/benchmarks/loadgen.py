"""MLPerf LoadGen (mlcommons-loadgen) against a node over gRPC: SingleStream, Server and Offline.

python samples/benchmarks/loadgen.py [--seconds 10]

The model is the Fashion-MNIST net in float, one row a request in SingleStream and Server, 16 in Offline; the inputs are
noise. LoadGen's own validity rules (minutes of duration, thousands of queries) are for submissions: here the duration
is bounded, and its log says which rule that breaks.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import numpy as np
from common import environment, rounded, save
from serving import node, random_input, scratch, zoo_bundle

from edgekit.bundle import Bundle
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import NodeClient
from edgekit.zoo.fashion import fashion_cnn

SAMPLES = 64
CALLERS = 16
OFFLINE_ROWS = 16
SERVER_QPS = 150.0
SERVER_LATENCY_NS = 50_000_000


class NodeUnderTest:
    """LoadGen's system under test: each query goes to the node as requests of at most `rows` samples."""

    def __init__(self, client: NodeClient, model: str, tensor: str, inputs: Sequence[np.ndarray], rows: int) -> None:
        self.client, self.model, self.tensor, self.inputs, self.rows = client, model, tensor, inputs, rows
        self.pool = ThreadPoolExecutor(CALLERS)
        self.latencies_ms: list[float] = []
        self.failures: list[str] = []
        self._lock = threading.Lock()

    def issue(self, queries: Sequence[Any]) -> None:
        for start in range(0, len(queries), self.rows):
            chunk = list(queries[start : start + self.rows])
            self.pool.submit(self._answer, chunk, time.perf_counter())

    def _answer(self, queries: list[Any], issued: float) -> None:
        batch = np.concatenate([self.inputs[query.index] for query in queries])
        try:
            answer = self.client.infer(InferCall(self.model, {self.tensor: batch}))
            assert len(next(iter(answer.tensors.values()))) == len(queries)
        except Exception as error:
            self.failures.append(str(error))
        with self._lock:
            self.latencies_ms.append(1e3 * (time.perf_counter() - issued))
        lg.QuerySamplesComplete([lg.QuerySampleResponse(query.id, 0, 0) for query in queries])


def settings(scenario: Any, seconds: float, offline_qps: float) -> Any:
    chosen = lg.TestSettings()
    chosen.scenario, chosen.mode = scenario, lg.TestMode.PerformanceOnly
    chosen.min_duration_ms = int(1e3 * seconds)
    chosen.max_duration_ms = int(2e3 * seconds)
    chosen.min_query_count = 1
    chosen.server_target_qps = SERVER_QPS
    chosen.server_target_latency_ns = SERVER_LATENCY_NS
    chosen.offline_expected_qps = offline_qps
    return chosen


def run(
    scenario: str, under_test: NodeUnderTest, seconds: float, folder: Path, offline_qps: float = 1.0
) -> dict[str, Any]:
    library = lg.ConstructQSL(SAMPLES, SAMPLES, lambda indices: None, lambda indices: None)
    system = lg.ConstructSUT(under_test.issue, lambda: None)
    logs = lg.LogSettings()
    logs.log_output.outdir = str(folder)
    logs.enable_trace = False
    wanted = settings(getattr(lg.TestScenario, scenario), seconds, offline_qps)
    start = time.perf_counter()
    try:
        lg.StartTestWithLogSettings(system, library, wanted, logs)
    finally:
        lg.DestroySUT(system)
        lg.DestroyQSL(library)
    elapsed_s = time.perf_counter() - start
    under_test.pool.shutdown()
    if under_test.failures:
        raise RuntimeError(f"{len(under_test.failures)} requests failed, the first: {under_test.failures[0]}")
    requests = len(under_test.latencies_ms)
    return {
        "requests": requests,
        "samples_per_s": requests * under_test.rows / elapsed_s,
        "p50_ms": statistics.median(under_test.latencies_ms),
        "p99_ms": float(np.percentile(under_test.latencies_ms, 99)),
        "loadgen": _summary(folder / "mlperf_log_summary.txt"),
    }


def _summary(path: Path) -> dict[str, str]:
    """LoadGen's own figures, as it wrote them."""
    lines = path.read_text().splitlines()
    wanted = (
        "Result is",
        "Min duration",
        "Performance constraints",
        "Samples per second",
        "90.0th percentile latency (ns)",
        "Completed samples per second",
    )
    pairs = [[side.strip() for side in line.split(":", 1)] for line in lines if ":" in line]
    return {pair[0]: pair[1] for pair in pairs if pair[0].startswith(wanted)}


def measure(seconds: float) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    with scratch() as folder:
        bundle = zoo_bundle(fashion_cnn, folder)
        with Bundle.open(bundle) as opened:
            model = f"{opened.manifest.name}.whole"
            spec = opened.manifest.part().inputs[0].spec()
        inputs = [random_input(spec, 1, seed) for seed in range(SAMPLES)]
        with node(bundle) as served, NodeClient(served.url) as client:
            for scenario, per_request in (("SingleStream", 1), ("Server", 1), ("Offline", OFFLINE_ROWS)):
                logs = folder / scenario
                logs.mkdir()
                under_test = NodeUnderTest(client, model, spec.name, inputs, per_request)
                # In batches from many callers, a node does several times what one caller gets out of it.
                expected = 9 * rows["SingleStream"]["samples_per_s"] if rows else 1.0
                rows[scenario] = run(scenario, under_test, seconds, logs, expected)
                print(scenario, rounded(rows[scenario]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    result = rounded(measure(parser.parse_args().seconds))
    packages = ("onnxruntime", "grpcio", "mlcommons-loadgen")
    print("written:", save("loadgen", {**environment(1, packages), "scenarios": result}))


if __name__ == "__main__":
    main()

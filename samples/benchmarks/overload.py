"""A node at three times its capacity: goodput, the tail of who was let in, how fast the others were refused, memory.

python samples/benchmarks/overload.py [--seconds 20]

MiniLM in float, 128 tokens, over gRPC with a deadline of 400 ms in each request. The node is a process on one core, the
load generator on the other: Poisson arrivals that wait for nobody (open loop), calls without a thread each. Capacity is
what the same node answers at saturation where no request has a deadline (closed loop of as many callers as its largest
batch twice over). Goodput counts answers within the deadline.
"""

from __future__ import annotations

import argparse
import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from common import environment, rounded, save
from serving import Process, node, scratch, zoo_bundle

from edgekit.bundle import Bundle
from edgekit.runtimes.protocol.calls import InferCall, call_to_message
from edgekit.runtimes.protocol.frames import Wish
from edgekit.runtimes.protocol.messages import method_path

TOKENS, SLO_MS, MAX_BATCH = 128, 400.0, 8
LOADS = (0.5, 1.0, 3.0)


@dataclass
class Outcome:
    """Milliseconds from sending to the end, by how it ended."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def request(bundle: Path, deadline_ms: float | None) -> bytes:
    """One sentence of TOKENS tokens."""
    with Bundle.open(bundle) as opened:
        names = [entry.name for entry in opened.manifest.part().inputs]
    generator = np.random.default_rng(0)
    ids = generator.integers(1000, 30000, (1, TOKENS))
    tensors = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    wish = Wish(deadline_ms=deadline_ms)
    call = InferCall(f"{bundle.stem}.whole", {name: tensors[name] for name in names}, wish.parameters())
    data: bytes = call_to_message(call).SerializeToString()
    return data


def open_infer(process: Process) -> Any:
    return grpc.insecure_channel(process.address).unary_unary(method_path("ModelInfer"))


def capacity(served: Process, data: bytes, seconds: float) -> float:
    """Answers a second of a closed loop that always has two batches under way."""
    infer, stop, counts = open_infer(served), threading.Event(), [0] * (2 * MAX_BATCH)

    def work(number: int) -> None:
        while not stop.is_set():
            infer(data)
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    before, start = sum(counts), time.perf_counter()
    time.sleep(seconds)
    rate = (sum(counts) - before) / (time.perf_counter() - start)
    stop.set()
    for thread in threads:
        thread.join()
    return rate


def storm(served: Process, data: bytes, rate: float, seconds: float) -> Outcome:
    """Poisson arrivals, each sent when it is due whatever became of the others."""
    infer, outcome, lock = open_infer(served), Outcome(), threading.Lock()
    inside = threading.Semaphore(0)
    generator, sent, due = random.Random(1), 0, time.perf_counter()
    end = due + seconds
    while due < end:
        wait_s = due - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        start = time.perf_counter()
        call = infer.future(data)

        def done(future: Any, start: float = start) -> None:
            taken = 1e3 * (time.perf_counter() - start)
            code = future.code()
            kinds = {
                grpc.StatusCode.OK: outcome.answered,
                grpc.StatusCode.RESOURCE_EXHAUSTED: outcome.refused,
                grpc.StatusCode.DEADLINE_EXCEEDED: outcome.late,
            }
            with lock:
                if code in kinds:
                    kinds[code].append(taken)
                else:
                    outcome.failed.append(str(code))
            inside.release()

        call.add_done_callback(done)
        sent += 1
        due += generator.expovariate(rate)
    for _ in range(sent):
        inside.acquire()
    return outcome


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(values, 100 * share)) if values else 0.0


def measure(seconds: float) -> dict[str, Any]:
    from edgekit.zoo.minilm import minilm

    cores = sorted(os.sched_getaffinity(0))
    with scratch() as folder:
        bundle = zoo_bundle(minilm, folder)
        os.sched_setaffinity(0, cores[:1])  # the node inherits it
        with node(bundle, options=("--max-batch", str(MAX_BATCH))) as served:
            os.sched_setaffinity(0, cores[-1:])
            most = capacity(served, request(bundle, None), seconds / 2)
            rows = {}
            for load in LOADS:
                before = served.memory_bytes
                outcome = storm(served, request(bundle, SLO_MS), load * most, seconds)
                good = [taken for taken in outcome.answered if taken <= SLO_MS]
                rows[f"{load:g}x"] = {
                    "sent": sum(map(len, (outcome.answered, outcome.refused, outcome.late, outcome.failed))),
                    "goodput_per_s": len(good) / seconds,
                    "goodput_of_capacity": len(good) / seconds / most,
                    "answered_p50_ms": percentile(outcome.answered, 0.5),
                    "answered_p99_ms": percentile(outcome.answered, 0.99),
                    "answered_p99_of_slo": percentile(outcome.answered, 0.99) / SLO_MS,
                    "refused": len(outcome.refused),
                    "refused_p50_ms": percentile(outcome.refused, 0.5),
                    "refused_p99_ms": percentile(outcome.refused, 0.99),
                    "late": len(outcome.late),
                    "failed": len(outcome.failed),
                    "memory_grown_mb": (served.memory_bytes - before) / 1e6,
                }
    return {"capacity_per_s": most, "slo_ms": SLO_MS, "seconds": seconds, "cores": len(cores), "loads": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    result = rounded(measure(parser.parse_args().seconds))
    for load, row in result["loads"].items():
        print(load, row, flush=True)
    print(f"capacity {result['capacity_per_s']} a second")
    print("written:", save("overload", {**environment(1, ("onnxruntime", "grpcio")), **result}))


if __name__ == "__main__":
    main()

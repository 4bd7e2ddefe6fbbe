"""Requests while the edge is killed, paused, restarted, cut off, slowed to 1 kbit/s, damaged and exchanged.

    python samples/benchmarks/faults.py [--requests 10000]

The Fashion-MNIST net, cut in two; the edge is `edgekit serve` in a process of its own behind the link emulator, the
coordinator asks from four threads. Each answer is compared with the whole net's. Counted: lost (no answer, or an
error), wrong, answered twice, and later than the deadline + 20 ms. The aim is none of any.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would report every damaged header

import numpy as np
from common import environment, rounded, save
from fault_processes import Edge, LinkProcess, StallWatch
from fault_scene import Scene, trouble
from split_fashion import make_bundle

from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.runtimes.coordinator.breaker import BreakerSettings
from edgekit.runtimes.coordinator.coordinator import Coordinator

LINK = "50mbps,4ms"
DEADLINE_MS = 300.0
GRACE_MS = 20.0
THREADS = 4
# One request of each thread every so often: a phase lasts long enough for its faults to come and go several times.
EVERY_S = 0.06
# Two files of one net differ by rounding; two of the images by much more.
TOLERANCE = 1e-2


@dataclass
class Counts:
    requests: int = 0
    answered: int = 0
    lost: int = 0
    wrong: int = 0
    twice: int = 0
    late: int = 0
    degraded: int = 0
    edge: int = 0
    attempts: int = 0
    faults: int = 0
    latest_ms: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    errors: list[str] = field(default_factory=list)

    def fault(self) -> None:
        self.faults += 1


def ask_all(coordinator: Coordinator, images: np.ndarray, logits: np.ndarray, count: int, counts: Counts) -> None:
    """`count` requests from four threads, each at its pace."""
    answers: list[int] = [0] * count
    ids: list[str] = []
    took: list[float] = []
    lock = threading.Lock()

    def ask(first: int) -> None:
        due = time.monotonic() + EVERY_S * first / THREADS
        for index in range(first, count, THREADS):
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due + EVERY_S, time.monotonic())
            row = index % len(images)
            started = time.monotonic()
            try:
                answer = coordinator.ask({"image": images[row : row + 1]})
            except EdgekitError as error:
                with lock:
                    counts.lost += 1
                    counts.errors.append(f"{type(error).__name__}: {error.message}"[:200])
                continue
            finally:
                spent_ms = 1e3 * (time.monotonic() - started)
                with lock:
                    took.append(spent_ms)
                    counts.late += spent_ms > DEADLINE_MS + GRACE_MS
            right = np.abs(answer.outputs["logits"] - logits[row]).max() <= TOLERANCE
            with lock:
                answers[index] += 1
                ids.append(answer.request_id)
                counts.wrong += not right
                counts.degraded += answer.degraded
                counts.edge += answer.tier == "edge"
                counts.attempts += answer.attempts

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts.requests = count
    counts.answered = sum(answers)
    counts.lost += sum(number == 0 for number in answers) - counts.lost
    counts.twice = sum(number > 1 for number in answers) + len(ids) - len(set(ids))
    counts.latest_ms = max(took)
    counts.p50_ms, counts.p95_ms = (float(np.percentile(took, share)) for share in (50, 95))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--phase", help="only this one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the edge ends with us
    with tempfile.TemporaryDirectory() as folder:
        path, images, logits = make_bundle(Path(folder) / "fashion.edgekit")
        other, _, _ = make_bundle(Path(folder) / "other.edgekit", gain=1.5)
        edge = Edge(path)
        edge.start()
        try:
            with StallWatch() as watch:
                results = run(path, other, edge, images, logits, arguments.requests, arguments.phase)
        finally:
            edge.send(signal.SIGCONT)
            edge.stop(signal.SIGKILL)
    total = {
        name: sum(getattr(counts, name) for counts in results.values())
        for name in ("requests", "answered", "lost", "wrong", "twice", "late", "degraded", "edge", "faults")
    }
    print({name: total[name] for name in ("requests", "lost", "wrong", "twice", "late")})
    print("an idle process was woken too late by ms:", rounded(watch.late_ms, 3))
    if arguments.phase is None:
        value = {
            **environment(1, ("onnxruntime", "grpcio")),
            "deadline_ms": DEADLINE_MS,
            "late_beyond_ms": DEADLINE_MS + GRACE_MS,
            "threads_asking": THREADS,
            "load_average_meanwhile": os.getloadavg()[1],
            "idle_process_late_ms": rounded(watch.late_ms, 3),
            "link": LINK,
            "total": total,
            "phases": {name: rounded(asdict(counts)) for name, counts in results.items()},
        }
        print(save("faults", value))


def run(
    path: Path, other: Path, edge: Edge, images: np.ndarray, logits: np.ndarray, requests: int, only: str | None
) -> dict[str, Counts]:
    results: dict[str, Counts] = {}
    with (
        LinkProcess(f"127.0.0.1:{edge.port}", LINK) as link,
        Bundle.open(path) as bundle,
        Coordinator(
            bundle,
            f"grpc://{link.address}",
            policy="split",
            deadline_ms=DEADLINE_MS,
            threads=1,
            breaker=BreakerSettings(failures=3, first_s=0.2, longest_s=2.0),
            recheck_s=0.5,
        ) as coordinator,
    ):
        phases = Scene(edge, link, other, LINK).phases
        for name, fault in phases.items():
            if only not in (None, name):
                continue
            counts = results[name] = Counts()
            with trouble(fault, counts.fault):
                ask_all(coordinator, images, logits, requests // len(phases), counts)
            print(f"{name:15}", {key: value for key, value in rounded(asdict(counts)).items() if key != "errors"})
            for error in sorted(set(counts.errors))[:5]:
                print("   ", error)
    return results


if __name__ == "__main__":
    main()

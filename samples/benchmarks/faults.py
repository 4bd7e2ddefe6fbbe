"""Requests while the edge is killed, paused, restarted, cut off, slowed to 1 kbit/s, damaged and exchanged.

    python samples/benchmarks/faults.py [--requests 10000]

The Fashion-MNIST net, cut in two; the edge is `edgekit serve` in a process of its own behind the link emulator, the
coordinator asks from four threads. Each answer is compared with the whole net's. Counted: lost (no answer, or an
error), wrong, answered twice, and later than the deadline + 20 ms. The aim is none of any.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would report every damaged header

import numpy as np
from common import environment, rounded, save

from edgekit.bundle import Bundle, describe_file, write_bundle
from edgekit.bundle.manifest import Codec, Manifest, Part, Provenance, Rate, TensorEntry, Tier, Variant
from edgekit.devices.device import load_device
from edgekit.errors import EdgekitError
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.passes.capture import Capture
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.split import split
from edgekit.runtimes.coordinator.breaker import BreakerSettings
from edgekit.runtimes.coordinator.coordinator import Coordinator
from edgekit.zoo.fashion import fashion_cnn

DEADLINE_MS = 300.0
GRACE_MS = 20.0
THREADS = 4
LINK = "50mbps,4ms"
# One request of each thread every so often: a phase lasts long enough for its faults to come and go several times.
EVERY_S = 0.06
CUT = "features.5"
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


def make_bundle(path: Path, gain: float = 1.0) -> tuple[Path, np.ndarray, np.ndarray]:
    """(bundle, images float32 [n, 1, 28, 28], logits [n, 10] of the float net). `gain` makes another version of it."""
    import torch

    model = fashion_cnn()
    with torch.no_grad():
        model.module.classifier.weight.mul_(gain)  # type: ignore[union-attr, operator]
    captured = Capture()(model)
    head, tail = split(captured, [find_cut(captured, CUT)])
    device = load_device("raspberry-pi-5")
    parts, files = [], {}
    with tempfile.TemporaryDirectory() as folder:
        rows: tuple[tuple[str, Any, Tier], ...] = (
            ("whole", captured, "device"),
            ("head", head, "device"),
            ("tail", tail, "edge"),
        )
        for name, stage, tier in rows:
            artifact = OnnxExporter().export(stage, Path(folder), device)
            data = artifact.path.read_bytes()
            inputs, outputs = artifact.interface(stage)
            files[f"parts/{name}.onnx"] = data
            parts.append(
                Part(
                    **describe_file(f"{name}.onnx", data).model_dump(),
                    name=name,
                    tier=tier,
                    format="onnx",
                    precision="fp32",
                    inputs=tuple(TensorEntry.of(spec) for spec in inputs),
                    outputs=tuple(TensorEntry.of(spec) for spec in outputs),
                )
            )
    size = parts[1].outputs[0].spec().size_bytes
    manifest = Manifest(
        name="fashion-cnn",
        task="image-classification",
        device="raspberry-pi-5",
        tiers={"edge": "x86-server"},
        parts=tuple(parts),
        codecs=(
            Codec(
                name="plain",
                kind="plain",
                features=parts[1].outputs,
                rates=(Rate(bytes_mean=size, bytes_p95=size, drop=0.0),),
            ),
        ),
        variants=(
            Variant(name="local", parts=("whole",)),
            Variant(name="split", parts=("head", "tail"), codecs=("plain",)),
        ),
        provenance=Provenance(
            edgekit="0", versions={}, source_kind="sample", source="fashion-cnn", source_sha256="0" * 64, recipe={}
        ),
    )
    write_bundle(path, manifest, files, {"schema_version": 1}, "<!doctype html>")
    images = np.concatenate([sample["image"].numpy() for sample in model.held_out])
    with torch.no_grad():
        logits = model.module(torch.from_numpy(images)).numpy()
    return path, images, logits


class Edge:
    """`edgekit serve` on one port, whatever happens to the process."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, bundle: Path | None = None) -> None:
        self.stop()
        command = ["-m", "edgekit", "serve", str(bundle or self.bundle), "--tier", "edge", "--port", "0"]
        self._process = subprocess.Popen(
            [sys.executable, *command, "--grpc-port", str(self.port), "--threads", "1", "--grace", "1", "-q"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None:
                raise RuntimeError(f"edgekit serve ended with {self._process.returncode}")
            time.sleep(0.05)
        raise RuntimeError("edgekit serve does not listen")

    def send(self, number: int) -> None:
        if self._process is not None:
            os.kill(self._process.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self.send(number)
            self._process.wait(20)
            self._process = None


class LinkProcess:
    """The link emulator in a process of its own: in this one it would compete with what is measured. Takes one command
    a line on its standard input."""

    _CODE = """
import sys
from edgekit.planning.link import Link
from edgekit.runtimes.link.emulator import LinkEmulator
with LinkEmulator("127.0.0.1:0", sys.argv[1], Link.parse(sys.argv[2])) as link:
    print(link.address, flush=True)
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "set":
            link.set(Link.parse(argument))
        elif command == "cut":
            link.cut(close=argument == "close")
        elif command == "restore":
            link.restore()
        elif command == "flip":
            link.flip(argument)
"""

    def __init__(self, to: str, link: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._CODE, to, link], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> LinkProcess:
        return self

    def __exit__(self, *failure: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


class StallWatch:
    """A process that sleeps 5 ms at a time and notes by how much it was woken too late: what the machine alone adds.

    Where that is more than a deadline has to spare, late answers tell of the machine's load.
    """

    _CODE = """
import json, select, sys, time
late = []
while not select.select([sys.stdin], [], [], 0)[0]:
    due = time.monotonic() + 0.005
    time.sleep(0.005)
    late.append(1e3 * (time.monotonic() - due))
late.sort()
print(json.dumps({"p50": late[len(late) // 2], "p99": late[int(0.99 * len(late))], "max": late[-1]}))
"""

    def __enter__(self) -> StallWatch:
        self.late_ms: dict[str, float] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *failure: object) -> None:
        told, _ = self._process.communicate("stop\n", timeout=20)
        self.late_ms = json.loads(told)


@dataclass
class Scene:
    edge: Edge
    link: LinkProcess
    other: Path

    def steady(self, rest: Callable[[float], bool]) -> None:
        rest(0.5)

    def killed(self, rest: Callable[[float], bool]) -> None:
        self.edge.stop(signal.SIGKILL)
        rest(0.7)
        self.edge.start()
        rest(1.5)

    def restarted(self, rest: Callable[[float], bool]) -> None:
        self.edge.stop(signal.SIGTERM)
        self.edge.start()
        rest(1.5)

    def paused(self, rest: Callable[[float], bool]) -> None:
        self.edge.send(signal.SIGSTOP)
        rest(1.0)
        self.edge.send(signal.SIGCONT)
        rest(1.5)

    def link_cut(self, rest: Callable[[float], bool]) -> None:
        self.link.tell("cut close")
        rest(0.7)
        self.link.tell("restore")
        rest(1.0)
        self.link.tell("cut")  # a hole: connections stay and nothing moves
        rest(0.7)
        self.link.tell("restore")
        rest(1.0)

    def slowed(self, rest: Callable[[float], bool]) -> None:
        self.link.tell("set 1kbps,4ms")
        rest(1.5)
        self.link.tell(f"set {LINK}")
        rest(1.5)

    def damaged(self, rest: Callable[[float], bool]) -> None:
        self.link.tell("flip up")
        rest(0.3)
        self.link.tell("flip down")
        rest(0.3)

    def skewed(self, rest: Callable[[float], bool]) -> None:
        self.edge.start(self.other)
        rest(1.5)
        self.edge.start()
        rest(1.5)

    @property
    def phases(self) -> dict[str, Callable[[Callable[[float], bool]], None]]:
        return {
            "steady": self.steady,
            "killed": self.killed,
            "restarted": self.restarted,
            "paused": self.paused,
            "link cut": self.link_cut,
            "1 kbit/s": self.slowed,
            "bytes flipped": self.damaged,
            "version skewed": self.skewed,
        }


@contextmanager
def trouble(fault: Callable[[Callable[[float], bool]], None], counts: Counts) -> Iterator[None]:
    """The fault, over and over, until the block ends; whole rounds, so that the next phase finds things in order."""
    done = threading.Event()
    failures: list[BaseException] = []

    def stir() -> None:
        try:
            while not done.is_set():
                counts.faults += 1
                fault(done.wait)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=stir)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]


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
        phases = Scene(edge, link, other).phases
        for name, fault in phases.items():
            if only not in (None, name):
                continue
            counts = results[name] = Counts()
            with trouble(fault, counts):
                ask_all(coordinator, images, logits, requests // len(phases), counts)
            print(f"{name:15}", {key: value for key, value in rounded(asdict(counts)).items() if key != "errors"})
            for error in sorted(set(counts.errors))[:5]:
                print("   ", error)
    return results


if __name__ == "__main__":
    main()

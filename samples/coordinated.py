"""Device, edge and cloud as processes on this machine, shaped links between them, every policy on every trace.

Real sockets, real frames, real models. The device alone is emulated in one respect: each of its parts is stretched to
the latency that the latency model predicts for its profile (edgekit/runtimes/paced_session.py), because this machine is
faster than a Raspberry Pi. Everything above it runs at this machine's own speed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from edgekit.bundle import Bundle
from edgekit.devices.device import Device, load_device
from edgekit.devices.latency import predict
from edgekit.errors import EdgekitError, NodeError
from edgekit.planning.link import Link
from edgekit.planning.named_traces import trace_named
from edgekit.planning.plan import PlanLimits, Power
from edgekit.planning.traces import Trace
from edgekit.planning.ways import power_of
from edgekit.runtimes.coordinator.answer import Answer
from edgekit.runtimes.coordinator.coordinator import Coordinator
from edgekit.runtimes.link.emulator import LinkEmulator
from edgekit.runtimes.paced_session import PacedSession
from edgekit.runtimes.session import Session

START_S = 60.0
STOP_S = 10.0
EDGE_CLOUD = Link(1000.0, 8.0)
DEVICE_STAGES = ("head", "exit", "encode", "local")
Feeds = dict[str, np.ndarray]


class ServingProcess:
    """`edgekit serve` in a process of its own, on free ports; stopped by its own process id."""

    def __init__(self, bundle: Path, tier: str, *options: str) -> None:
        command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--tier", tier, "--port", "0"]
        command += ["--grpc-port", "0", "--threads", "1", "--json", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        timer = threading.Timer(START_S, self.process.kill)
        timer.start()
        lines = list(_until(self.process.stdout, "}"))
        timer.cancel()
        if not lines:
            raise NodeError(f"the {tier} node did not start", hint=f"run it by hand: {' '.join(command)}")
        self.url: str = json.loads("".join(lines))["grpc"]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> ServingProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@dataclass(frozen=True)
class Cell:
    """A policy on a trace: what `requests` answers took and cost. `answers` were compared with the float model's."""

    trace: str
    policy: str
    requests: int
    p50_ms: float
    p95_ms: float
    mean_ms: float
    bytes_mean: float
    energy_mj: float | None
    agreement: float
    degraded: int
    failed: int
    tiers: dict[str, int]


class Hierarchy:
    """The processes and links of one bundle. Use with `with`."""

    def __init__(self, bundle: Path) -> None:
        self.path = bundle
        self.device: Device
        self._stack = ExitStack()

    def __enter__(self) -> Hierarchy:
        with ExitStack() as stack:
            self.bundle = stack.enter_context(Bundle.open(self.path))
            self.device = load_device(self.bundle.manifest.device)
            cloud = stack.enter_context(ServingProcess(self.path, "cloud"))
            above = stack.enter_context(LinkEmulator("127.0.0.1:0", _address(cloud.url), EDGE_CLOUD))
            edge = stack.enter_context(ServingProcess(self.path, "edge", "--upstream", f"grpc://{above.address}"))
            self.edge_address = _address(edge.url)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def pace(self, name: str, session: Session) -> Session:
        part = self.bundle.manifest.part(name)
        return PacedSession(session, predict(part.segments, self.device, part.format).latency_ms)

    @contextmanager
    def coordinator(
        self, policy: str, trace: Trace, deadline_ms: float, max_drop: float | None
    ) -> Iterator[Coordinator]:
        """The trace begins when the policy has shaken hands."""
        with LinkEmulator("127.0.0.1:0", self.edge_address, trace) as link:
            coordinator = Coordinator(
                self.bundle,
                edge=f"grpc://{link.address}",
                policy=policy,
                deadline_ms=deadline_ms,
                limits=PlanLimits(drop=max_drop),
                wrap=self.pace,
                threads=1,
            )
            try:
                yield coordinator
            finally:
                coordinator.close()


def run_cell(
    hierarchy: Hierarchy,
    trace: Trace,
    policy: str,
    feeds: Sequence[Feeds],
    reference: np.ndarray,
    *,
    requests: int,
    think_ms: float,
    deadline_ms: float,
    max_drop: float | None,
) -> Cell:
    """`reference` [len(feeds)]: the float model's classes. One request after the other, `think_ms` in between."""
    power = power_of(hierarchy.device)
    latencies: list[float] = []
    answers: list[Answer] = []
    agreed = failed = 0
    energies: list[float] = []
    with hierarchy.coordinator(policy, trace, deadline_ms, max_drop) as coordinator:
        start = time.monotonic()
        for index in range(requests):
            which = index % len(feeds)
            begun = time.perf_counter()
            at_s = time.monotonic() - start
            try:
                answer = coordinator.ask(feeds[which])
            except EdgekitError:
                failed += 1
                continue
            latencies.append(1e3 * (time.perf_counter() - begun))
            answers.append(answer)
            agreed += int(next(iter(answer.outputs.values())).argmax() == reference[which])
            if power is not None:
                energies.append(_energy_mj(answer, power, trace.at(at_s).bandwidth_mbps))
            time.sleep(think_ms / 1e3)
    tiers: dict[str, int] = {}
    for answer in answers:
        tiers[answer.tier] = tiers.get(answer.tier, 0) + 1
    return Cell(
        trace=trace.name,
        policy=policy,
        requests=requests,
        p50_ms=float(np.median(latencies)) if latencies else float("nan"),
        p95_ms=float(np.percentile(latencies, 95)) if latencies else float("nan"),
        mean_ms=float(np.mean(latencies)) if latencies else float("nan"),
        bytes_mean=float(np.mean([answer.bytes_sent for answer in answers])) if answers else 0.0,
        energy_mj=float(np.mean(energies)) if energies else None,
        agreement=agreed / max(len(answers), 1),
        degraded=sum(answer.degraded for answer in answers),
        failed=failed,
        tiers=tiers,
    )


def _energy_mj(answer: Answer, power: Power, bandwidth_mbps: float) -> float:
    """The device's own, above idle: computing, its bytes on the air at the link's rate, and waiting for the rest."""
    busy_ms = sum(answer.latency_ms.get(stage, 0.0) for stage in DEVICE_STAGES)
    air_ms = 8e-3 * (answer.bytes_sent + answer.bytes_received) / bandwidth_mbps
    waited_ms = max(0.0, answer.total_ms - busy_ms - air_ms)
    return busy_ms * power.compute_w + air_ms * power.radio_w + waited_ms * power.idle_w


def named(names: Sequence[str]) -> list[Trace]:
    return [trace_named(name) for name in names]


def _until(stream: Iterable[str], last: str) -> Iterator[str]:
    for line in stream:
        yield line
        if line.rstrip() == last:
            return


def _address(url: str) -> str:
    return url.partition("://")[2]

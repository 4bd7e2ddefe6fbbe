"""A real node in a process of its own on this machine, and the load that is sent to it.

Node and client are kept on different cores where the system lets us and there are two or more: the node takes the first
of this process's cores and as many more as it is told, the client the rest. On one core both share it, and the figures
say what such a machine does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from edgekit.bundle.manifest import Part, Tier
from edgekit.capacity.calibration import noise_rows, pinned
from edgekit.errors import NodeError, RemoteError
from edgekit.runtimes.lifeline import start_tied
from edgekit.runtimes.protocol.calls import InferCall, call_to_message
from edgekit.runtimes.protocol.client import NodeClient
from edgekit.runtimes.protocol.frames import model_name
from edgekit.runtimes.protocol.messages import METHODS, method_path

START_S, STOP_S = 120.0, 30.0
# A request that takes longer counts as lost.
PATIENCE_S = 20.0
REFUSED = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


@dataclass(frozen=True)
class Cores:
    """Numbers of processor cores. `apart`: no core belongs to both."""

    node: tuple[int, ...]
    client: tuple[int, ...]

    @property
    def apart(self) -> bool:
        return not set(self.node) & set(self.client)

    @classmethod
    def divide(cls, wanted: int = 1) -> Cores:
        """`wanted` for the node, as long as one is left for the client."""
        if not hasattr(os, "sched_getaffinity"):
            return cls((), ())
        mine = sorted(os.sched_getaffinity(0))
        node = tuple(mine[: max(1, min(wanted, len(mine) - 1))])
        return cls(node, tuple(core for core in mine if core not in node) or node)

    def __str__(self) -> str:
        if not self.node:
            return "node and client share all cores (this system cannot pin them)"
        names = [",".join(map(str, cores)) for cores in (self.node, self.client)]
        return f"node on core {names[0]}, client on core {names[1]}"


@dataclass(frozen=True)
class Served:
    """A node that runs: its gRPC address, and the time that its processor has spent."""

    url: str
    pid: int

    def cpu_s(self) -> dict[int, float]:
        """Seconds of processor time of each of its threads that live, by their number; none where the system does not
        tell."""
        spent = {}
        for task in Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            with suppress(OSError):  # it ended meanwhile
                spent[int(task.parent.name)] = int(task.read_text().split()[0]) * 1e-9
        return spent


def spent_s(before: dict[int, float], after: dict[int, float]) -> list[float]:
    """Of each thread in between, most first."""
    return sorted((seconds - before.get(thread, 0.0) for thread, seconds in after.items()), reverse=True)


@contextmanager
def serving(bundle: Path, tier: Tier, options: Sequence[str], cores: Sequence[int] = ()) -> Iterator[Served]:
    """`edgekit serve` with `options` on a free port of 127.0.0.1; ended with the context, or with this process. Raises
    NodeError where it does not start, with what it said."""
    words = ["--tier", tier, "--host", "127.0.0.1", "--port", "0", "--grpc-port", "0", "--json", *options]
    command = [sys.executable, "-m", "edgekit", "serve", str(bundle), *words]

    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    with pinned(cores):  # it stays where it was started
        begun = start_tied(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    with begun as process:
        assert process.stdout is not None and process.stderr is not None
        said: list[str] = []
        listener = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
        listener.start()
        late = threading.Timer(START_S, process.kill)
        late.start()
        try:
            told = _first_object(process.stdout)
            late.cancel()
            if told is None or "grpc" not in told:
                process.kill()
                listener.join(STOP_S)
                why = json.dumps(told) if told else "".join(said).strip()[-800:]
                raise NodeError(
                    f"the node did not start: {why or 'it said nothing'}",
                    hint=f"try it: edgekit serve {bundle} --tier {tier} {' '.join(options)}",
                )
            yield Served(told["grpc"], process.pid)
        finally:
            late.cancel()
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            if process.poll() is None:
                process.kill()


def _first_object(stream: Any) -> dict[str, Any] | None:
    text = ""
    while not text.endswith("\n}\n"):
        line = stream.readline()
        if not line:
            return None
        text += line
    found: dict[str, Any] = json.loads(text)
    return found


@dataclass(frozen=True)
class Measured:
    """What came of a load: `latency_ms` float [n] from when each request was due, infinite for those without an answer;
    `sent_late_ms` how far behind the client was at worst; `cpu_s` of each of the node's threads, most first."""

    latency_ms: np.ndarray
    rate_hz: float
    answered_hz: float
    refused: int
    sent_late_ms: float
    cpu_s: tuple[float, ...]
    seconds: float


class Caller:
    """Sends one request of one row of noise over and over, without waiting for answers. Close it."""

    def __init__(self, served: Served, bundle_name: str, part: Part) -> None:
        feeds = noise_rows([entry.spec() for entry in part.inputs], 1)
        self._model = model_name(bundle_name, part.name)
        self._message: bytes = call_to_message(InferCall(self._model, feeds)).SerializeToString()
        self._served = served
        self._client = NodeClient(served.url)
        self._infer = self._client.channel.unary_unary(method_path("ModelInfer"))

    def warm_up(self, times: int = 20) -> None:
        """Raises RemoteError where the node does not answer."""
        for _ in range(times):
            try:
                self._infer(self._message, timeout=PATIENCE_S)
            except grpc.RpcError as error:
                raise RemoteError(f"the node does not answer: {error.details()}") from error

    def alone(self, seconds: float) -> np.ndarray:
        """Seconds of each call, one after another, ten at least; answers are taken as in `send`, by another thread."""
        found: list[float] = []
        ends = time.perf_counter() + seconds
        while len(found) < 10 or time.perf_counter() < ends:
            arrived = threading.Event()
            start = time.perf_counter()

            def done(call: Any, start: float = start, arrived: threading.Event = arrived) -> None:
                found.append(time.perf_counter() - start)
                arrived.set()

            self._infer.future(self._message, timeout=PATIENCE_S).add_done_callback(done)
            arrived.wait(PATIENCE_S + 1)
        return np.asarray(found)

    def together(self, in_flight: int, seconds: float) -> Measured:
        """Closed loop: so many requests are inside at any time, and each answer sends the next one."""
        latencies: list[float] = []
        refused = [0]
        ends = time.perf_counter() + seconds
        idle = threading.Semaphore(0)

        def begin() -> None:
            at = time.perf_counter()
            self._infer.future(self._message, timeout=PATIENCE_S).add_done_callback(lambda call: done(call, at))

        def done(call: Any, at: float) -> None:
            now = time.perf_counter()
            if call.exception() is None:
                latencies.append(1e3 * (now - at))
            else:
                refused[0] += 1
            if now < ends and refused[0] < in_flight:
                begin()
            else:
                idle.release()

        cpu, start = self._served.cpu_s(), time.perf_counter()
        for _ in range(in_flight):
            begin()
        for _ in range(in_flight):
            idle.acquire(timeout=seconds + PATIENCE_S + 1)
        elapsed, sent = time.perf_counter() - start, len(latencies) + refused[0]
        return Measured(
            latency_ms=np.asarray(latencies),
            rate_hz=sent / elapsed,
            answered_hz=len(latencies) / elapsed,
            refused=refused[0],
            sent_late_ms=0.0,
            cpu_s=tuple(spent_s(cpu, self._served.cpu_s())),
            seconds=elapsed,
        )

    def counted(self) -> tuple[int, int, float]:
        """Of the model, since the node began: rows, runs, and the seconds that all runs took together."""
        request = METHODS["ModelStatistics"][0](name=self._model)
        entry = self._client.call("ModelStatistics", request, timeout_s=PATIENCE_S).model_stats[0]
        spent = sum(batch.compute_infer.ns for batch in entry.batch_stats)
        return entry.inference_count, entry.execution_count, spent * 1e-9

    def send(self, due_s: np.ndarray) -> Measured:
        """Open loop: each request leaves at its time (float [n], seconds from now, rising), whatever became of those
        before, and its latency counts from then."""
        latency = np.full(len(due_s), np.inf)
        refused = [0]
        left = threading.Semaphore(0)

        def done(index: int, call: Any, at: float) -> None:
            if call.exception() is None:
                latency[index] = 1e3 * (time.perf_counter() - at)
            elif call.code() in REFUSED:
                refused[0] += 1
            left.release()

        cpu, late, start = self._served.cpu_s(), 0.0, time.perf_counter() + 0.01
        for index, offset in enumerate(due_s.tolist()):
            at = start + offset
            while (wait := at - time.perf_counter()) > 0:
                time.sleep(wait)
            late = max(late, time.perf_counter() - at)
            call = self._infer.future(self._message, timeout=PATIENCE_S)
            call.add_done_callback(lambda call, index=index, at=at: done(index, call, at))
        ends = time.perf_counter() + PATIENCE_S + 1
        for _ in range(len(due_s)):
            left.acquire(timeout=max(0.01, ends - time.perf_counter()))
        seconds = time.perf_counter() - start
        span = float(due_s[-1])
        return Measured(
            latency_ms=latency,
            rate_hz=len(due_s) / span,
            answered_hz=float(np.isfinite(latency).sum()) / max(span, seconds),
            refused=refused[0],
            sent_late_ms=1e3 * late,
            cpu_s=tuple(spent_s(cpu, self._served.cpu_s())),
            seconds=seconds,
        )

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *of: object) -> None:
        self.close()

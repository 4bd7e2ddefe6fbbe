"""A bundle on Ray under steady load, while it is rolled over to another version and replicas are killed.

Runs inside a namespace of its own (`rolling.py` starts it there) and prints one JSON object. The model multiplies
small integers, so that every answer is exact whatever batch it ran in, and tells its version.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.bundle import describe_file, write_bundle
from edgekit.bundle.manifest import Manifest, Part, Provenance, TensorEntry, Variant
from edgekit.runtimes.ray_engine import RayNode, RayOptions, Replicas
from edgekit.runtimes.server import BatchOptions, NodeOptions

WIDTH, ROWS, INPUTS = 512, 8, 8
MODEL = "exact.whole"
# Versions differ by what they add: (x @ SIGNS @ SIGNS) + version stays below 2^24, where float32 counts exactly.
SIGNS = np.random.default_rng(7).choice([-1.0, 1.0], (WIDTH, WIDTH)).astype(np.float32)


@dataclass(frozen=True)
class Plan:
    """How the scene goes; seconds are of each phase. A caller rests `pause_s` after each answer; `max_requests` bounds
    it. A replica waits `delay_ms` for a batch's company, so that whoever is killed has requests inside."""

    replicas: int = 2
    callers: int = 8
    pause_s: float = 0.02
    delay_ms: float = 50.0
    steady_s: float = 5.0
    kills: int = 1
    max_requests: int = 20_000
    limit_s: float = 300.0


@dataclass
class Phase:
    """`lost`: without a whole answer of status 200. `wrong`: equal to no version's. `late`: of the former version, sent
    after the update was done. `resent`: answered after the proxy sent it again."""

    name: str
    answered: int = 0
    lost: int = 0
    wrong: int = 0
    late: int = 0
    resent: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    failures: Counter = field(default_factory=Counter)
    versions: Counter = field(default_factory=Counter)
    replicas: set[str] = field(default_factory=set)

    def summary(self) -> dict[str, Any]:
        ordered = sorted(self.latencies_ms) or [0.0]
        return {
            "name": self.name,
            **{key: value for key, value in asdict(self).items() if isinstance(value, int)},
            "versions": dict(self.versions),
            "replicas": len(self.replicas),
            "failures": dict(self.failures),
            "p50_ms": ordered[len(ordered) // 2],
            "p95_ms": ordered[int(0.95 * (len(ordered) - 1))],
            "max_ms": ordered[-1],
        }


def write_version(path: Path, version: int) -> Path:
    """float32 [batch, WIDTH] -> x @ SIGNS @ SIGNS + version, as a bundle; replaces what lies at `path`."""
    sizes = ["batch", WIDTH]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "signs"], ["once"]),
            helper.make_node("MatMul", ["once", "signs"], ["twice"]),
            helper.make_node("Add", ["twice", "version"], ["y"]),
        ],
        "exact",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
        [
            helper.make_tensor("signs", TensorProto.FLOAT, SIGNS.shape, SIGNS.tobytes(), raw=True),
            helper.make_tensor("version", TensorProto.FLOAT, [1], [float(version)]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    onnx.checker.check_model(model)
    x, y = (TensorEntry(name=name, dtype="float32", shape=("batch", WIDTH)) for name in ("x", "y"))
    part = Part(
        **describe_file("exact.onnx", data).model_dump(),
        name="whole",
        format="onnx",
        precision="fp32",
        inputs=(x,),
        outputs=(y,),
    )
    manifest = Manifest(
        name="exact",
        task="none",
        device="x86-server",
        parts=(part,),
        variants=(Variant(name="whole", parts=("whole",)),),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="sample", source="exact", source_sha256="0" * 64, recipe={}
        ),
    )
    return write_bundle(
        path, manifest, {"parts/exact.onnx": data}, {"schema_version": 1}, "<!doctype html>", force=True
    )


def expected(x: np.ndarray, version: int) -> np.ndarray:
    """In integers: no rounding anywhere."""
    signs = SIGNS.astype(np.int64)
    return (x.astype(np.int64) @ signs @ signs + version).astype(np.float32)


class Load:
    """Callers in threads of their own, each with one connection, one request after the other; none is sent twice."""

    def __init__(self, url: str, plan: Plan) -> None:
        generator = np.random.default_rng(0)
        self._inputs = [generator.integers(-3, 4, (ROWS, WIDTH)).astype(np.float32) for _ in range(INPUTS)]
        self._right = [{version: expected(x, version) for version in (1, 2)} for x in self._inputs]
        self._address = url.removeprefix("http://")
        self._plan, self._lock, self._end = plan, threading.Lock(), threading.Event()
        self.phase, self.only_version = Phase("start"), 0
        self._threads = [threading.Thread(target=self._call, args=(seed,)) for seed in range(plan.callers)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)

    def begin(self, name: str) -> Phase:
        with self._lock:
            self.phase = Phase(name)
            return self.phase

    def _call(self, seed: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        generator = np.random.default_rng(seed)
        for _ in range(self._plan.max_requests):
            if self._end.wait(self._plan.pause_s):
                break
            self._one(connection, int(generator.integers(INPUTS)))
        connection.close()

    def _one(self, connection: http.client.HTTPConnection, index: int) -> None:
        head, raw = _request(self._inputs[index])
        phase, only, start = self.phase, self.only_version, time.perf_counter()
        try:
            headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
            connection.request("POST", f"/v2/models/{MODEL}/infer", head + raw, headers)
            answer = connection.getresponse()
            status, got, said = answer.status, dict(answer.getheaders()), answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            status, got, said = 0, {}, repr(error).encode()
        took_ms = 1e3 * (time.perf_counter() - start)
        version = _version(got, said, self._right[index]) if status == 200 else 0
        lowered = {key.lower(): value for key, value in got.items()}
        with self._lock:
            phase.latencies_ms.append(took_ms)
            phase.resent += int(lowered.get("edgekit-retries", "0")) > 0
            phase.replicas |= {lowered["edgekit-replica"]} if "edgekit-replica" in lowered else set()
            if status != 200:
                phase.lost += 1
                phase.failures[f"{status} {said[:120].decode('utf-8', 'replace')}"] += 1
                return
            phase.answered += 1
            phase.wrong += version == 0
            phase.late += version != 0 and only != 0 and version != only
            phase.versions[str(version)] += 1


def _request(x: np.ndarray) -> tuple[bytes, bytes]:
    raw = x.tobytes()
    entry = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    asked = {"inputs": [entry], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    return json.dumps(asked).encode(), raw


def _version(headers: dict[str, str], body: bytes, right: dict[int, np.ndarray]) -> int:
    """The version whose exact answer this is; 0 for none."""
    lowered = {key.lower(): value for key, value in headers.items()}
    raw = body[int(lowered["inference-header-content-length"]) :]
    return next((version for version, y in right.items() if raw == y.tobytes()), 0)


def replica_pids() -> list[int]:
    """Of this namespace's replicas: Ray names their processes."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                name = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::ServeReplica"):
                found.append(int(folder.name))
    return sorted(found)


def kill_replica(node: RayNode, plan: Plan, until: float) -> None:
    """Kills one, and waits until as many run as there should be."""
    gone = replica_pids()[0]
    os.kill(gone, signal.SIGKILL)
    while time.monotonic() < until:
        alive = replica_pids()
        if gone not in alive and min(len(alive), node.replicas().get("RUNNING", 0)) >= plan.replicas:
            return
        time.sleep(0.2)
    raise TimeoutError(f"after {plan.limit_s:g} s not {plan.replicas} replicas run: {node.replicas()}")


def ray_options(plan: Plan, folder: Path) -> RayOptions:
    return RayOptions(
        NodeOptions(tier="device", port=0, grpc_port=None, threads=1, batch=BatchOptions(64, plan.delay_ms, 256)),
        Replicas(plan.replicas, plan.replicas),
        object_store_bytes=80 << 20,
        temp_dir=folder / "ray",
        health_period_s=1.0,
    )


def play(plan: Plan, folder: Path) -> dict[str, Any]:
    until = time.monotonic() + plan.limit_s
    bundle = write_version(folder / "exact.edgekit", 1)
    phases: list[Phase] = []
    started = time.monotonic()
    with RayNode([bundle], ray_options(plan, folder)) as node:
        up_s = time.monotonic() - started
        load = Load(node.rest_url, plan)
        load.start()
        try:
            phases.append(load.begin("steady"))
            time.sleep(plan.steady_s)
            phases.append(load.begin("rolling update"))
            begun = time.monotonic()
            write_version(bundle, 2)
            node.update()
            update_s = time.monotonic() - begun
            # What was sent before the update was done may still be answered by the former version.
            load.only_version = 2
            phases.append(load.begin("updated"))
            time.sleep(plan.steady_s)
            for _ in range(plan.kills):
                phases.append(load.begin("replica killed"))
                kill_replica(node, plan, until)
                time.sleep(plan.steady_s)
        finally:
            load.stop()
    return {
        "plan": asdict(plan),
        "up_s": up_s,
        "update_s": update_s,
        "phases": [phase.summary() for phase in phases],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", nargs="?", default="{}", help="the fields of a Plan as JSON; the rest by default")
    parser.add_argument("folder", nargs="?", type=Path, help="for what it writes meanwhile")
    given = parser.parse_args()
    plan = Plan(**json.loads(given.plan))
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        print(json.dumps(play(plan, Path(folder))))


if __name__ == "__main__":
    main()

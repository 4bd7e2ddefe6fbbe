"""Runs in namespaces of its own (test_cluster.py): what a user does with Ray, told as one JSON object."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.http as triton

from edgekit.bundle import Bundle, describe_file, write_bundle
from edgekit.errors import NodeError
from edgekit.runtimes.ray_engine import RayNode
from samples.benchmarks.rolling_scene import (
    MODEL,
    ROWS,
    WIDTH,
    Load,
    Plan,
    expected,
    kill_replica,
    ray_options,
    write_version,
)


def write_broken(path: Path, like: Path) -> None:
    """A whole, sealed bundle whose part no runtime can load."""
    data = b"no graph at all"
    with Bundle.open(like) as bundle:
        part = bundle.manifest.parts[0]
        broken = part.model_copy(update=describe_file(part.file, data).model_dump())
        manifest = bundle.manifest.model_copy(update={"parts": (broken,)})
    write_bundle(path, manifest, {f"parts/{part.file}": data}, {"schema_version": 1}, "<!doctype html>", force=True)


def ask_as_a_stranger(url: str) -> dict[str, Any]:
    """Through Triton's own client, binary tensors and all."""
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    x = np.random.default_rng(5).integers(-3, 4, (ROWS, WIDTH)).astype(np.float32)
    tensor = triton.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    wanted = triton.InferRequestedOutput("y", binary_data=True)
    answer = client.infer(MODEL, [tensor], outputs=[wanted], request_id="7")
    told = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready() and client.is_model_ready(MODEL),
        "model": client.get_model_metadata(MODEL)["name"],
        "id": answer.get_response()["id"],
        "right": bool(np.array_equal(answer.as_numpy("y"), expected(x, 1))),
    }
    client.close()
    with httpx.Client(base_url=url) as plain:
        told["unknown"] = plain.get("/v2/models/none").status_code
        told["malformed"] = plain.post(f"/v2/models/{MODEL}/infer", content=b"{").status_code
        told["metrics"] = plain.get("/metrics").status_code
    return told


def update_to_something_broken(node: RayNode, bundle: Path) -> dict[str, Any]:
    former = node.deployed
    write_broken(bundle, bundle)
    try:
        node.update()
    except NodeError as error:
        return {"refused": error.message, "keeps": node.deployed == former, "replicas": node.replicas()}
    return {"refused": ""}


def others_alive() -> list[str]:
    """Processes of this namespace beside this one and the shell that started it."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) not in (1, os.getpid()):
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            found += [words] if words else []
    return found


def play(plan: Plan, folder: Path) -> dict[str, Any]:
    until = time.monotonic() + plan.limit_s
    bundle = write_version(folder / "exact.edgekit", 1)
    told: dict[str, Any] = {}
    with RayNode([bundle], ray_options(plan, folder)) as node:
        told["same"] = node.update()
        told["stranger"] = ask_as_a_stranger(node.rest_url)
        load = Load(node.rest_url, plan)
        load.start()
        try:
            phases = [load.begin("broken")]
            told["broken"] = update_to_something_broken(node, bundle)
            phases.append(load.begin("rolling update"))
            write_version(bundle, 2)
            told["updated"] = node.update()
            load.only_version = 2
            phases.append(load.begin("killed"))
            for _ in range(plan.kills):
                kill_replica(node, plan, until)
            time.sleep(plan.steady_s)
        finally:
            load.stop()
        staged = [path.name for path in (folder / "ray").glob("edgekit-*/*")]
        told["staged"] = len(staged)
    until = time.monotonic() + 30
    while others_alive() and time.monotonic() < until:
        time.sleep(0.2)
    told["left_running"] = others_alive()
    told["left_staged"] = [str(path) for path in (folder / "ray").glob("edgekit-*")]
    return {**told, "phases": {phase.name: phase.summary() for phase in phases}}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(play(Plan(**json.loads(sys.argv[1])), Path(sys.argv[2]))) + "\n")

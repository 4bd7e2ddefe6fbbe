"""Runs in namespaces of its own (test_cluster.py): `edgekit serve --engine ray` as a process, with a token, scaled by
load, called over gRPC while a replica is killed, rolled over by SIGHUP, ended by SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as triton

from edgekit.bundle import Bundle, write_bundle
from edgekit.errors import EdgekitError
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import ClientOptions, NodeClient
from samples.benchmarks.rolling_scene import MODEL, WIDTH, expected, replica_pids, write_version

ZEROS = {"inputs": [{"name": "x", "shape": [1, WIDTH], "datatype": "FP32", "data": [0.0] * WIDTH}]}
LIMIT_S, CALLERS, MAX_CALLS = 150.0, 8, 2000


def start(bundle: Path, token: Path, folder: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    words = [
        "--engine",
        "ray",
        "--replicas",
        "1:2",
        "--replica-cpus",
        "0.5",
        "--tier",
        "device",
        "--port",
        "0",
        "--grpc-port",
        "0",
    ]
    words += ["--token-file", str(token), "--max-batch", "2", "--max-delay-ms", "200", "--json"]
    command = [sys.executable, "-m", "edgekit", "serve", str(bundle), *words]
    errors = (folder / "errors").open("w")
    environment = {**os.environ, "RAY_TMPDIR": str(folder)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    assert process.stdout is not None
    text = ""
    while not text.endswith("\n}\n"):
        line = process.stdout.readline()
        assert line, (folder / "errors").read_text()
        text += line
    told: dict[str, Any] = json.loads(text)
    assert "rest" in told, f"{text}{(folder / 'errors').read_text()}"
    return process, told


def load_until_two_answer(url: str, authorization: dict[str, str]) -> dict[str, Any]:
    """The replicas that have answered, and statuses, until there are two replicas."""
    replicas: set[str] = set()
    statuses: dict[int, int] = {}
    until = time.monotonic() + LIMIT_S

    def call() -> None:
        with httpx.Client(base_url=url, headers=authorization, timeout=60) as client:
            for _ in range(MAX_CALLS):
                if len(replicas) >= 2 or time.monotonic() > until:
                    return
                answer = client.post(f"/v2/models/{MODEL}/infer", json=ZEROS)
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                replicas.add(answer.headers.get("edgekit-replica", ""))

    with ThreadPoolExecutor(CALLERS) as pool:
        for done in [pool.submit(call) for _ in range(CALLERS)]:
            done.result()
    return {"replicas": len(replicas - {""}), "statuses": sorted(statuses)}


def call_while_one_is_killed(url: str) -> dict[str, Any]:
    """Over gRPC, as a device does: how many calls were right, and the failures. The replica that is killed is one of
    two."""
    x = np.random.default_rng(3).integers(-3, 4, (2, WIDTH)).astype(np.float32)
    right, failures, began = [0], list[str](), time.monotonic()
    killed = threading.Event()

    def call() -> None:
        with NodeClient(url, ClientOptions("secret")) as client:
            for _ in range(MAX_CALLS):
                if (killed.is_set() and time.monotonic() > began + 8) or time.monotonic() > began + LIMIT_S:
                    return
                try:
                    answer = client.infer(InferCall(MODEL, tensors={"x": x}))
                    right[0] += bool(np.array_equal(answer.tensors["y"], expected(x, 1)))
                except EdgekitError as error:
                    failures.append(str(error))

    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(call) for _ in range(CALLERS)]
        time.sleep(2)
        os.kill(replica_pids()[0], signal.SIGKILL)
        killed.set()
        for caller in callers:
            caller.result()
    return {"right": right[0], "failures": failures}


def asked_over_grpc(url: str) -> dict[str, Any]:
    """By a stranger's client, and by ours with a wrong token."""
    client = triton.InferenceServerClient(url.removeprefix("grpc://"))
    told = {"live": client.is_server_live(), "ready": client.is_server_ready()}
    headers = {"authorization": "Bearer secret"}
    told["dims"] = [list(entry.dims) for entry in client.get_model_config(MODEL, headers=headers).config.input]
    client.close()
    with NodeClient(url, ClientOptions("wrong")) as ours:
        try:
            ours.call("ServerMetadata")
        except EdgekitError as error:
            told["refused"] = type(error).__name__
    with NodeClient(url, ClientOptions("secret")) as ours:
        try:
            ours.infer(InferCall("none", tensors={}))
        except EdgekitError as error:
            told["unknown"] = type(error).__name__
    return told


def value(client: httpx.Client) -> float:
    """What zeros give: the version's own number."""
    answer = client.post(f"/v2/models/{MODEL}/infer", json=ZEROS)
    found: float = answer.json()["outputs"][0]["data"][0]
    return found


def write_renamed(path: Path) -> None:
    with Bundle.open(path) as bundle:
        manifest = bundle.manifest.model_copy(update={"name": "other"})
        files = {f"parts/{part.file}": bundle.part_path(part.name).read_bytes() for part in manifest.parts}
    write_bundle(path, manifest, files, {"schema_version": 1}, "<!doctype html>", force=True)


def wait_for(said: str, errors: Path) -> None:
    until = time.monotonic() + LIMIT_S
    while said not in errors.read_text():
        if time.monotonic() > until:
            raise TimeoutError(f"{said!r} was not said: {errors.read_text()}")
        time.sleep(0.2)


def play(folder: Path) -> dict[str, Any]:
    bundle, token = write_version(folder / "exact.edgekit", 1), folder / "token"
    token.write_text("secret\n")
    process, told = start(bundle, token, folder)
    found: dict[str, Any] = {"told": told}
    authorization = {"Authorization": "Bearer secret"}
    try:
        with httpx.Client(base_url=told["rest"], timeout=60) as client:
            found["stranger"] = client.get("/v2").status_code
            client.headers.update(authorization)
            found["before"] = value(client)
            found["load"] = load_until_two_answer(told["rest"], authorization)
            found["niced"] = [
                os.getpriority(os.PRIO_PROCESS, pid) - os.getpriority(os.PRIO_PROCESS, 0) for pid in replica_pids()
            ]
            found["grpc"] = asked_over_grpc(told["grpc"])
            found["killed"] = call_while_one_is_killed(told["grpc"])
            process.send_signal(signal.SIGHUP)
            wait_for("unchanged", folder / "errors")
            write_version(bundle, 2)
            process.send_signal(signal.SIGHUP)
            wait_for("rolled over", folder / "errors")
            found["after"] = value(client)
            write_renamed(bundle)
            process.send_signal(signal.SIGHUP)
            wait_for("exact.whole is answered with 404 from now on, as other.whole was", folder / "errors")
            found["renamed"] = [client.get(f"/v2/models/{name}").status_code for name in (MODEL, "other.whole")]
    finally:
        process.terminate()
        time.sleep(0.05)
        process.terminate()  # as `timeout` does it
        found["ended"] = process.wait(120)
    return {**found, "errors": (folder / "errors").read_text()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(play(Path(sys.argv[1]))) + "\n")

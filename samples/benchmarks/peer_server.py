"""Requests a second of a node beside a public server of the same ONNX file: MLServer (Open Inference Protocol v2).

python samples/benchmarks/peer_server.py --peer-python PEER/bin/python

    python3 -m venv PEER && PEER/bin/pip install mlserver onnxruntime

MLServer has an environment of its own, since its pins are not ours. Both serve the file over gRPC with the same request
bytes (raw contents), ONNX Runtime on one thread and batches of up to 8 (MLServer's adaptive batching, which waits up to
5 ms for company). Server on one core, callers on the other, in turns; each at the better of its two settings (batches,
or one by one).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
from common import environment, rounded, save
from server import CLIENTS, open_infer, request_bytes, swarm
from serving import ALONE, Process, free_ports, node, random_input, scratch, zoo_bundle

from edgekit.bundle import Bundle
from edgekit.runtimes.protocol import messages

PEERS = ("edgekit", "MLServer")
MAX_BATCH, ROUNDS, LAP_S = 8, 4, 6.0

RUNTIME = """
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        self.names = [entry.name for entry in self.session.get_outputs()]
        return True

    async def predict(self, payload):
        feeds = {entry.name: NumpyCodec.decode_input(entry) for entry in payload.inputs}
        found = self.session.run(self.names, feeds)
        outputs = [NumpyCodec.encode_output(name, value) for name, value in zip(self.names, found)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""


@contextmanager
def mlserver(python: str, bundle: Path, folder: Path, max_batch: int) -> Iterator[Process]:
    """Its own two files of settings and a runtime for ONNX, as its documentation shows."""
    folder.mkdir()
    with Bundle.open(bundle) as opened:
        part = opened.manifest.part()
        shutil.copy(opened.part_path(part.name), folder / "model.onnx")
        inputs = [{"name": e.name, "datatype": "FP32", "shape": [-1, *e.shape[1:]]} for e in part.inputs]
        outputs = [{"name": e.name, "datatype": "FP32", "shape": [-1, *e.shape[1:]]} for e in part.outputs]
    rest, rpc, metrics = free_ports(3)
    settings: dict[str, Any] = {"host": "127.0.0.1", "http_port": rest, "grpc_port": rpc, "metrics_port": metrics}
    settings |= {"parallel_workers": 0, "grpc_max_message_length": 16 << 20, "debug": False}
    model: dict[str, Any] = {"name": f"{bundle.stem}.whole", "implementation": "peer_runtime.Onnx"}
    model |= {"parameters": {"uri": str(folder / "model.onnx")}, "inputs": inputs, "outputs": outputs}
    if max_batch > 1:
        model |= {"max_batch_size": max_batch, "max_batch_time": 0.005}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    (folder / "peer_runtime.py").write_text(RUNTIME)
    command = [str(Path(python).parent / "mlserver"), "start", str(folder)]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**ALONE, "PYTHONPATH": str(folder)},
        cwd=folder,
    ) as process:
        try:
            _wait_until_ready(f"127.0.0.1:{rpc}", process)
            yield Process(f"grpc://127.0.0.1:{rpc}", process.pid)
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    ready = grpc.insecure_channel(address).unary_unary(messages.method_path("ServerReady"))
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"MLServer ended with {process.returncode}")
        try:
            if messages.METHODS["ServerReady"][1].FromString(ready(b"", timeout=1)).ready:
                return
        except grpc.RpcError:
            time.sleep(0.1)
    raise RuntimeError("MLServer did not become ready")


def measure(python: str) -> dict[str, Any]:
    from edgekit.zoo.efficientnet import efficientnet_lite0

    cores = sorted(os.sched_getaffinity(0))
    with scratch() as folder, ExitStack() as stack:
        bundle = zoo_bundle(efficientnet_lite0, folder)
        with Bundle.open(bundle) as opened:
            spec = opened.manifest.part().inputs[0].spec()
        request = request_bytes(f"{bundle.stem}.whole", spec.name, random_input(spec, 1))
        os.sched_setaffinity(0, cores[:1])  # the servers inherit it
        servers: dict[str, Process] = {}
        for batch in (1, MAX_BATCH):
            servers[f"edgekit, batch {batch}"] = stack.enter_context(node(bundle, options=("--max-batch", str(batch))))
            servers[f"MLServer, batch {batch}"] = stack.enter_context(
                mlserver(python, bundle, folder / f"peer{batch}", batch)
            )
        os.sched_setaffinity(0, cores[-1:])
        rates: dict[str, list[float]] = {label: [] for label in servers}
        for turn in range(ROUNDS):
            for label, served in servers.items():
                infer = open_infer(served)
                infer(request)
                rate, _ = swarm(lambda infer=infer: infer(request), CLIENTS, LAP_S, served)
                if turn:
                    rates[label].append(rate)
    rows_per_s = {label: statistics.median(each) for label, each in rates.items()}
    best = {name: max(rate for label, rate in rows_per_s.items() if label.startswith(name)) for name in PEERS}
    return {"rows_per_s": rows_per_s, "best": best, "ratio": best["edgekit"] / best["MLServer"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, metavar="FILE", help="Of the environment that holds MLServer.")
    python = parser.parse_args().peer_python
    shown = subprocess.run([python, "-m", "pip", "show", "mlserver"], capture_output=True, text=True, check=True).stdout
    version = next(line.split()[1] for line in shown.splitlines() if line.startswith("Version"))
    result = rounded(measure(python))
    print(result)
    facts = environment(1, ("onnxruntime", "grpcio"))
    print("written:", save("peer_server", {**facts, "mlserver": version, **result}))


if __name__ == "__main__":
    main()

"""What the server's benchmarks share: a zoo model in a bundle, a node in a process of its own, a bare gRPC server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.bundle import describe_file, write_bundle
from edgekit.bundle.manifest import Manifest, Part, Provenance, TensorEntry, Variant
from edgekit.tensors import TensorSpec

ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


def _write(path: Path, name: str, file: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Path:
    part = Part(
        **describe_file(f"{name}.onnx", file).model_dump(),
        name="whole",
        format="onnx",
        precision="fp32",
        inputs=tuple(TensorEntry.of(spec) for spec in inputs),
        outputs=tuple(TensorEntry.of(spec) for spec in outputs),
    )
    manifest = Manifest(
        name=name,
        task="none",
        device="x86-server",
        parts=(part,),
        variants=(Variant(name="whole", parts=("whole",)),),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="sample", source=name, source_sha256="0" * 64, recipe={}
        ),
    )
    return write_bundle(path, manifest, {f"parts/{name}.onnx": file}, {"schema_version": 1}, "<!doctype html>")


def zoo_bundle(build: Callable[[], Any], folder: Path) -> Path:
    """A zoo model in float as a bundle of one ONNX part, its batch dynamic."""
    from edgekit.devices.device import load_device
    from edgekit.pipeline import prepare
    from edgekit.progress import silent
    from edgekit.registry import EXPORTERS

    model, _ = prepare(build(), silent)
    artifact = EXPORTERS.load("onnx")().export(model, folder, load_device("x86-server"))
    return _write(folder / f"{model.name}.edgekit", model.name, artifact.path, model.input_specs, model.output_specs)


def adding_bundle(width: int, folder: Path) -> Path:
    """float32 [batch, width] + 1: a model that costs next to nothing, to see what all else costs."""
    sizes = ["batch", width]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        "add",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    file = folder / f"add{width}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    specs = [TensorSpec(name, "float32", ("batch", width)) for name in ("x", "y")]
    return _write(folder / f"add{width}.edgekit", f"add{width}", file, (specs[0],), (specs[1],))


def cutting_bundle(width: int, kept: int, folder: Path) -> Path:
    """float32 [batch, width] -> its first `kept` columns: much comes, little goes."""
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["y"])],
        "cut",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", kept])],
        [
            helper.make_tensor(name, TensorProto.INT64, [1], [value])
            for name, value in (("starts", 0), ("ends", kept), ("axes", 1))
        ],
    )
    file = folder / f"cut{width}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    specs = [TensorSpec(name, "float32", ("batch", size)) for name, size in (("x", width), ("y", kept))]
    return _write(folder / f"cut{width}.edgekit", f"cut{width}", file, (specs[0],), (specs[1],))


@dataclass(frozen=True)
class Process:
    url: str
    pid: int
    rest_url: str = ""

    @property
    def address(self) -> str:
        return self.url.partition("://")[2]

    @property
    def memory_bytes(self) -> int:
        """Resident, now."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    @property
    def cpu_s(self) -> float:
        """Spent so far, by all threads, in user mode and in the system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def node(*bundles: Path, options: tuple[str, ...] = ()) -> Iterator[Process]:
    """`edgekit serve` on free ports, one thread a model."""
    words = ["--tier", "device", "--port", "0", "--grpc-port", "0", "--threads", "1", "--json", *options]
    command = [sys.executable, "-m", "edgekit", "serve", *map(str, bundles), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ALONE) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the node did not start")
            text += line
        try:
            told = json.loads(text)
            yield Process(told["grpc"], process.pid, told["rest"])
        finally:
            process.terminate()
            process.wait(30)


def free_ports(count: int) -> list[int]:
    """Nothing listens there, for as long as nobody else is given them."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


BARE = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
answer = bytes(int(sys.argv[1]))
server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
handler = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
server.add_generic_rpc_handlers(
    (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler}),)
)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
server.stop(0)
"""


BARE_REST = """
import asyncio, sys, threading
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
answer = bytes(int(sys.argv[1]))

async def infer(request):
    await request.body()
    return Response(answer, media_type="application/octet-stream")

app = Starlette(routes=[Route("/infer", infer, methods=["POST"])])
config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", loop="asyncio", timeout_keep_alive=600)
server = uvicorn.Server(config)

async def serve():
    running = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await running

def watch():
    sys.stdin.read()
    server.should_exit = True

threading.Thread(target=watch, daemon=True).start()
asyncio.run(serve())
"""


@contextmanager
def bare_grpc(answer_bytes: int) -> Iterator[Process]:
    """A gRPC server that does nothing but return so many bytes."""
    with _bare(BARE, answer_bytes, "grpc") as process:
        yield process


@contextmanager
def bare_rest(answer_bytes: int) -> Iterator[Process]:
    """Starlette on uvicorn that does nothing but read the body and return so many bytes."""
    with _bare(BARE_REST, answer_bytes, "http") as process:
        yield process


@contextmanager
def _bare(program: str, answer_bytes: int, scheme: str) -> Iterator[Process]:
    command = [sys.executable, "-c", program, str(answer_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ALONE) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            yield Process(f"{scheme}://127.0.0.1:{process.stdout.readline().strip()}", process.pid)
        finally:
            process.stdin.close()
            process.wait(30)


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def random_input(spec: TensorSpec, rows: int, seed: int = 0) -> np.ndarray:
    shape = [rows, *(size for size in spec.shape[1:] if isinstance(size, int))]
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

"""A small bundle cut into three parts, and nodes that serve them on free ports of this machine."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.bundle import describe_file, write_bundle
from edgekit.bundle.manifest import Codec, Manifest, Part, Provenance, Rate, TensorEntry, Tier, Variant
from edgekit.runtimes.server import Node, NodeOptions

WIDTH, CLASSES = 6, 3
GAIN = np.arange(WIDTH * CLASSES, dtype=np.float32).reshape(WIDTH, CLASSES) / 7 - 1


def _onnx(input: str, output: str, width: int, op: str, weight: np.ndarray, batch: str | int) -> bytes:
    """float32 [batch, WIDTH] -> [batch, width], `op` with `weight`."""
    graph = helper.make_graph(
        [helper.make_node(op, [input, "weight"], [output])],
        "part",
        [helper.make_tensor_value_info(input, TensorProto.FLOAT, [batch, WIDTH])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor("weight", TensorProto.FLOAT, weight.shape, weight.ravel().tolist())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _part(name: str, tier: Tier, data: bytes, input: str, output: str, width: int, batch: str | int) -> Part:
    return Part(
        **describe_file(f"{name}.onnx", data).model_dump(),
        name=name,
        tier=tier,
        format="onnx",
        precision="fp32",
        inputs=(TensorEntry(name=input, dtype="float32", shape=(batch, WIDTH)),),
        outputs=(TensorEntry(name=output, dtype="float32", shape=(batch, width)),),
    )


def expected(x: np.ndarray, scale: float = 2.0) -> np.ndarray:
    """What the whole model says of float32 [n, WIDTH]."""
    return ((x * np.float32(scale) + 1) @ GAIN).astype(np.float32)


def make_split(
    path: Path,
    *,
    scale: float = 2.0,
    gain: float = 1.0,
    batch: str | int = "batch",
    name: str = "net",
    tables: bytes | None = None,
) -> Path:
    """head (x * scale) on the device, middle (+ 1) on the edge, tail (@ GAIN) in the cloud.

    Variants: `three` takes all of them, `local` the head alone. Plain codecs of two rates: float32 and float16; with
    `tables`, transform codecs of two rates.
    """
    scales = np.full(WIDTH, scale, np.float32)
    files = {
        "head": _onnx("x", "scaled", WIDTH, "Mul", scales, batch),
        "middle": _onnx("scaled", "shifted", WIDTH, "Add", np.ones(WIDTH, np.float32), batch),
        "tail": _onnx("shifted", "scores", CLASSES, "MatMul", gain * GAIN, batch),
    }
    parts = (
        _part("head", "device", files["head"], "x", "scaled", WIDTH, batch),
        _part("middle", "edge", files["middle"], "scaled", "shifted", WIDTH, batch),
        _part("tail", "cloud", files["tail"], "shifted", "scores", CLASSES, batch),
    )
    rates = tuple(Rate(bytes_mean=size, bytes_p95=size, drop=0.0) for size in (60, 40))

    def codec(feature: str) -> Codec:
        entry = TensorEntry(name=feature, dtype="float32", shape=(batch, WIDTH))
        if tables is None:
            return Codec(name=f"code-{feature}", kind="plain", features=(entry,), rates=rates)
        return Codec(name=f"code-{feature}", kind="transform", features=(entry,), rates=rates, tables="transform.bin")

    manifest = Manifest(
        name=name,
        task="classification",
        device="raspberry-pi-5",
        tiers={"edge": "x86-server", "cloud": "x86-server"},
        parts=parts,
        codecs=(codec("scaled"), codec("shifted")),
        variants=(
            Variant(name="three", parts=("head", "middle", "tail"), codecs=("code-scaled", "code-shifted")),
            Variant(name="local", parts=("head",)),
        ),
        assets=() if tables is None else (describe_file("transform.bin", tables),),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="callable", source="net", source_sha256="0" * 64, recipe={}
        ),
    )
    held = {f"parts/{key}.onnx": data for key, data in files.items()}
    if tables is not None:
        held["assets/transform.bin"] = tables
    return write_bundle(path, manifest, held, {"schema_version": 1}, "<!doctype html>")


@pytest.fixture(scope="session")
def split_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_split(tmp_path_factory.mktemp("split") / "net.edgekit")


@pytest.fixture
def serve() -> Iterator[Callable[..., Node]]:
    """Starts nodes (over gRPC alone, unless a port is given) that are stopped when the test ends."""
    nodes: list[Node] = []

    def start(*bundles: Path, **options: Any) -> Node:
        node = Node(list(bundles), NodeOptions(**{"threads": 1, "port": None, **options}))
        nodes.append(node)
        node.start()
        return node

    yield start
    for node in reversed(nodes):
        node.stop(2.0)


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same name, with another head and another tail."""
    return make_split(tmp_path_factory.mktemp("other") / "net.edgekit", scale=3.0, gain=2.0)


@pytest.fixture(scope="session", name="expected")
def _expected() -> Callable[..., np.ndarray]:
    return expected


@pytest.fixture
def free_port() -> int:
    """Nothing listens there, for as long as nobody else is given it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="session", name="make_split")
def _make_split() -> Callable[..., Path]:
    return make_split

"""Small bundles of ONNX parts, cut in as many places as a test wants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.bundle import describe_file, write_bundle
from edgekit.bundle.manifest import Codec, Exit, Manifest, Part, Provenance, Rate, TensorEntry, Tier, Variant

Tensor = tuple[str, str, tuple[int | str, ...]]
BESIDE = b"what lies beside a part"
KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def doubling(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> bytes:
    """Each output is twice the input of its place."""
    nodes = [helper.make_node("Add", [a[0], a[0]], [b[0]]) for a, b in zip(inputs, outputs, strict=True)]

    def infos(tensors: tuple[Tensor, ...]) -> list[Any]:
        return [helper.make_tensor_value_info(name, KINDS[dtype], list(shape)) for name, dtype, shape in tensors]

    graph = helper.make_graph(nodes, "part", infos(inputs), infos(outputs))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def write(
    path: Path,
    parts: dict[str, tuple[Tier, tuple[Tensor, ...], tuple[Tensor, ...]]],
    *,
    format: str = "onnx",
    exits: bool = False,
    peak_bytes: int = 0,
    companion: str = "",
) -> Path:
    """One plan, `all`, through all parts in order; `companion`: how a file is called that lies beside each part."""
    files = {name: doubling(inputs, outputs) for name, (_, inputs, outputs) in parts.items()}

    def entries(tensors: tuple[Tensor, ...]) -> tuple[TensorEntry, ...]:
        return tuple(TensorEntry(name=name, dtype=dtype, shape=shape) for name, dtype, shape in tensors)

    held = tuple(
        Part(
            **describe_file(f"{name}.onnx", files[name]).model_dump(),
            name=name,
            tier=tier,
            format=format,
            precision="fp32",
            inputs=entries(inputs),
            outputs=entries(outputs),
            peak_activation_bytes=peak_bytes,
            companions=(describe_file(f"{name}{companion}", BESIDE),) if companion else (),
        )
        for name, (tier, inputs, outputs) in parts.items()
    )
    remote = [name for name, (tier, _, _) in parts.items() if tier != "device"]
    rate = Rate(bytes_mean=1, bytes_p95=1, drop=0.0)
    codecs = tuple(
        Codec(name=f"to-{name}", kind="plain", features=entries(parts[name][1]), rates=(rate,)) for name in remote
    )
    variant = Variant(
        name="all",
        parts=tuple(parts),
        codecs=tuple(codec.name for codec in codecs),
        exits=tuple(Exit(part=name, temperature=1.0, threshold=0.9) for name in list(parts)[:-1]) if exits else (),
    )
    manifest = Manifest(
        name="Net.9",
        task="none",
        device="raspberry-pi-5",
        tiers={"edge": "x86-server", "cloud": "x86-server"},
        parts=held,
        codecs=codecs,
        variants=(variant,),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="callable", source="net", source_sha256="0" * 64, recipe={}
        ),
    )
    data = {f"parts/{name}.onnx": content for name, content in files.items()}
    if companion:
        data |= {f"parts/{name}{companion}": BESIDE for name in parts}
    return write_bundle(path, manifest, data, {"schema_version": 1}, "<!doctype html>")


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    def make(*arguments: Any, **settings: Any) -> Path:
        return write(tmp_path / "net.edgekit", *arguments, **settings)

    return make


@pytest.fixture
def tail_bundle(make_bundle: Callable[..., Path]) -> Path:
    """One part for the cloud: float32 [batch, 4] doubled, a megabyte of activations a row."""
    x, y = (("x", "float32", ("batch", 4)),), (("y", "float32", ("batch", 4)),)
    return make_bundle({"tail": ("cloud", x, y)}, peak_bytes=1_000_000)


@pytest.fixture
def split_bundle(make_bundle: Callable[..., Path]) -> Path:
    """head on the device, middle on the edge, tail in the cloud: float32 [batch, 4] through all of them."""
    x, a, b, y = ((name, "float32", ("batch", 4)) for name in ("x", "a", "b", "y"))
    return make_bundle({"head": ("device", (x,), (a,)), "middle": ("edge", (a,), (b,)), "tail": ("cloud", (b,), (y,))})

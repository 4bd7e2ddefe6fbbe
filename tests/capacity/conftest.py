"""A small model whose batch is open, as a bundle, and replicas of which everything is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.bundle import describe_file, write_bundle
from edgekit.bundle.manifest import Manifest, Part, Provenance, TensorEntry, Variant
from edgekit.devices.segment import Segment

WIDTH = 64


def make_whole(path: Path, batch: str | int = "batch") -> Path:
    """float32 [batch, 64] times a matrix, made for a device alone: one part, named `whole`."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "whole",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, WIDTH])],
        [helper.make_tensor("weight", TensorProto.FLOAT, [WIDTH, WIDTH], np.eye(WIDTH, dtype=np.float32).ravel())],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    onnx.checker.check_model(data)
    entries = [(TensorEntry(name=name, dtype="float32", shape=(batch, WIDTH)),) for name in ("x", "y")]
    part = Part(
        **describe_file("whole.onnx", data).model_dump(),
        name="whole",
        format="onnx",
        precision="fp32",
        inputs=entries[0],
        outputs=entries[1],
        segments=(Segment("matmul", "matmul", "fp32", 2.0 * WIDTH**2, 4.0 * WIDTH * (WIDTH + 2)),),
    )
    provenance = Provenance(
        edgekit="0.1.0", versions={}, source_kind="callable", source="whole", source_sha256="0" * 64, recipe={}
    )
    manifest = Manifest(
        name="small",
        task="none",
        device="x86-server",
        parts=(part,),
        variants=(Variant(name="whole", parts=("whole",)),),
        provenance=provenance,
    )
    return write_bundle(path, manifest, {"parts/whole.onnx": data}, {"schema_version": 1}, "<!doctype html>")


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whole(tmp_path_factory.mktemp("capacity") / "small.edgekit")

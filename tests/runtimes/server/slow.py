"""A model that takes as long as its input says, for nodes in processes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import describe_file, write_bundle
from edgekit.bundle.manifest import Manifest, Part, Provenance, TensorEntry, Variant

SIDE = 128


def _model() -> bytes:
    """float32 [batch, 1] -> the same, after as many products of matrices as the largest of them says."""
    square = [SIDE, SIDE]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "eye"], ["next"]),
            helper.make_node("Identity", ["going"], ["goes"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, square),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, square),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["turns"], to=TensorProto.INT64),
            helper.make_node("Loop", ["turns", "", "eye"], ["state"], body=body),
            helper.make_node("ReduceMax", ["state"], ["one"], keepdims=0),
            helper.make_node("Mul", ["x", "one"], ["y"]),
        ],
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.eye(SIDE, dtype=np.float32), "eye")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def make_slow(path: Path) -> Path:
    """Made for a device alone: the model `slow.whole`."""
    data = _model()
    entries = [(TensorEntry(name=name, dtype="float32", shape=("batch", 1)),) for name in ("x", "y")]
    part = Part(
        **describe_file("whole.onnx", data).model_dump(),
        name="whole",
        format="onnx",
        precision="fp32",
        inputs=entries[0],
        outputs=entries[1],
    )
    manifest = Manifest(
        name="slow",
        task="none",
        device="x86-server",
        parts=(part,),
        variants=(Variant(name="whole", parts=("whole",)),),
        provenance=Provenance(
            edgekit="0.1.0", versions={}, source_kind="callable", source="slow", source_sha256="0" * 64, recipe={}
        ),
    )
    return write_bundle(path, manifest, {"parts/whole.onnx": data}, {"schema_version": 1}, "<!doctype html>")

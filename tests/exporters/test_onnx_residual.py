from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from edgekit.devices.device import load_device
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.exporters.onnx_residual import separate_residuals
from edgekit.model import Model

from .conftest import make_model


class PostNorm(nn.Module):
    """A residual block whose sum is normalised, as BERT's; `twice`: and goes on beside that, as a ViT's."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.project, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, image: Tensor) -> Tensor:
        tokens = image.flatten(1, 2)
        total = tokens + torch.tanh(self.project(tokens))
        return self.norm(total) + total if self.twice else self.norm(total)


@pytest.fixture(scope="module", params=[False, True], ids=["post-norm", "pre-norm"])
def block(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(0)
    return make_model("block", PostNorm(request.param))


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def optimised_operators(path: Path, folder: Path) -> list[str]:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 3
    runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return operators(folder / "optimised.onnx")


def test_onnx_runtime_keeps_the_fast_kernels_of_a_residual_block(block: Model, tmp_path: Path) -> None:
    artifact = OnnxExporter().export(block, tmp_path, load_device("x86-server"))
    assert operators(artifact.path).count("Sum") == 1
    found = optimised_operators(artifact.path, tmp_path)
    assert "LayerNormalization" in found and "SkipLayerNormalization" not in found


def test_a_sum_gives_the_bits_of_the_addition(block: Model, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    path = OnnxExporter().export(block, tmp_path, load_device("x86-server")).path
    plain = onnx.load(str(path))
    for node in plain.graph.node:
        node.op_type = "Add" if node.op_type == "Sum" else node.op_type
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    feeds = {name: value.numpy() for name, value in block.calibration[1].items()}
    found = [
        runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for content in (path.read_bytes(), plain.SerializeToString())
    ]
    assert np.array_equal(*found)


def graph_of(second: ir.Value, dtype: ir.DataType, reader: str, before: list[ir.Node]) -> ir.Graph:
    first = ir.Value(name="x", shape=ir.Shape([1, 4, 8]), type=ir.TensorType(dtype))
    add = ir.node("Add", [first, second])
    add.outputs[0].dtype = dtype
    read = ir.node(reader, [add.outputs[0]])
    return ir.Graph([first], [read.outputs[0]], nodes=[*before, add, read], opset_imports={"": 21})


def activation(dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name="y", shape=ir.Shape([1, 4, 8]), type=ir.TensorType(dtype))


def test_only_float_activations_in_front_of_a_layer_norm_are_changed() -> None:
    constant = ir.Value(name="bias", type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.tensor(np.ones(8, "f4")))
    integers = ir.node("DequantizeLinear", [activation(ir.DataType.UINT8)])
    integers.outputs[0].dtype = ir.DataType.FLOAT
    single, half, norm = ir.DataType.FLOAT, ir.DataType.FLOAT16, "LayerNormalization"
    assert separate_residuals(graph_of(activation(), single, norm, [])) == 1
    assert separate_residuals(graph_of(activation(), single, "Softmax", [])) == 0
    assert separate_residuals(graph_of(activation(half), half, norm, [])) == 0
    assert separate_residuals(graph_of(constant, single, norm, [])) == 0
    assert separate_residuals(graph_of(integers.outputs[0], single, norm, [integers])) == 0

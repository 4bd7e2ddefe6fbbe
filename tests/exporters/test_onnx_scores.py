from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgekit.devices.device import load_device
from edgekit.evaluation.embeddings import row_cosines
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.quantizers.quantize import simulate
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.quantizers.static import StaticInt8
from edgekit.report.metrics import sqnr_db
from edgekit.runtimes.session import SessionOptions

from .conftest import make_model

HEADS, WIDTH = 2, 64


class Attends(nn.Module):
    """256 tokens of a picture -> as many of 128 channels; `divides`: the scores, instead of multiplying them."""

    def __init__(self, divides: bool) -> None:
        super().__init__()
        width = HEADS * WIDTH
        self.divides, self.embed, self.norm = divides, nn.Linear(12, width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.norm(self.embed(image.reshape(-1, 256, 12)))
        query, key, value = (
            part(tokens).view(-1, 256, HEADS, WIDTH).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2)
        scores = scores / WIDTH**0.5 if self.divides else scores * WIDTH**-0.5
        mixed: Tensor = torch.softmax(scores, -1) @ value
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


@pytest.fixture(scope="module", params=[False, True], ids=["multiplied", "divided"])
def attends(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(0)
    return make_model("attends", Attends(request.param), image={0: "batch"})


def optimised(path: Path, folder: Path) -> onnx.GraphProto:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 3
    runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(str(folder / "optimised.onnx")).graph


@pytest.mark.parametrize("opset", [17, 21])
def test_onnx_runtime_multiplies_unsigned_queries_by_signed_keys(attends: Model, tmp_path: Path, opset: int) -> None:
    quantized = StaticInt8(ONNX_X86)(attends)
    artifact = OnnxExporter(opset).export(quantized, tmp_path, load_device("x86-server"))
    graph = optimised(artifact.path, tmp_path)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    integer = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    products = [node for node in integer if not set(node.input[:2]) & stored.keys()]
    assert len(products) == 1
    assert [stored[name].dtype for name in products[0].input[4:6]] == [np.uint8, np.int8]
    assert sum(node.op_type in ("MatMul", "FusedMatMul") for node in graph.node) == 1
    assert not {"Mul", "Div", "DequantizeLinear"} & {node.op_type for node in graph.node}


def test_the_artifact_gives_what_torch_simulates(attends: Model, tmp_path: Path) -> None:
    quantized = StaticInt8(ONNX_X86)(attends)
    artifact = OnnxExporter().export(quantized, tmp_path, load_device("x86-server"))
    image = attends.example_inputs["image"]
    with artifact.open(quantized, SessionOptions(threads=1)) as session:
        got = next(iter(session.run({"image": image.numpy()}).values()))
    with torch.no_grad():
        simulated, exact = (model.module(image)[0].numpy() for model in (simulate(quantized), attends))
    # What lies at the middle between two steps may go to either: that is a hundredth of the values, not all of them.
    assert sqnr_db(simulated, got) > sqnr_db(exact, simulated) + 10
    assert row_cosines(got.reshape(1, -1), exact.reshape(1, -1))[0] > 0.999

"""Embedding tables in int8, through every format that has dynamic int8."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit.devices.device import load_device
from edgekit.exporters.base import Exporter
from edgekit.exporters.executorch_exporter import ExecutorchExporter
from edgekit.exporters.litert_exporter import LitertExporter
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.quantizers.dynamic import DynamicInt8

ROWS, WIDTH = 8192, 64


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, 8)
        with torch.no_grad():
            self.table.weight.mul_(torch.logspace(-2, 0, ROWS)[:, None])
            self.head.weight.copy_(torch.eye(8, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens))


@pytest.mark.parametrize(
    "exporter", [OnnxExporter(), LitertExporter(), ExecutorchExporter()], ids=lambda one: one.format
)
def test_the_file_holds_the_table_once_in_bytes_and_gives_its_numbers(exporter: Exporter, tmp_path: Path) -> None:
    exporter.check()
    torch.manual_seed(0)
    device = load_device("x86-server")
    model = Capture()(Model("text", Text().eval(), {"tokens": torch.arange(0, ROWS, 512)[None]}, ("logits",)))
    quantized = DynamicInt8(exporter.scheme(device))(model)
    artifact = exporter.export(quantized, tmp_path, device)
    table = ROWS * WIDTH
    assert table <= artifact.size_bytes < 1.4 * table
    want = quantized.forward(model.example_inputs)["logits"]
    with artifact.open(quantized) as session:
        got = torch.from_numpy(session.run({"tokens": model.example_inputs["tokens"].numpy()})["logits"])
    # the head's own run-time rounding: one step of the largest activation, a half on each value
    step = float(model.forward(model.example_inputs)["logits"].abs().max()) / 64
    assert float((want - got).abs().max()) < step


class Tied(nn.Module):
    """The table is the last layer's weight too, as in gpt2."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(48, 16), nn.Linear(16, 48, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens))


def test_onnx_keeps_a_tied_table_and_its_transpose_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    device, exporter = load_device("x86-server"), OnnxExporter()
    model = Capture()(Model("tied", Tied().eval(), {"tokens": torch.arange(0, 48, 5)[None]}, ("logits",)))
    quantized = DynamicInt8(exporter.scheme(device))(model)
    artifact = exporter.export(quantized, tmp_path, device)
    want = quantized.forward(model.example_inputs)["logits"]
    with artifact.open(quantized) as session:
        got = torch.from_numpy(session.run({"tokens": model.example_inputs["tokens"].numpy()})["logits"])
    assert float((want - got).abs().max()) < float(want.abs().max()) / 32

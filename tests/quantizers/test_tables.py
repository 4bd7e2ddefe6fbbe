from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.quantizers.anatomy import tensor_named
from edgekit.quantizers.dynamic import DynamicInt8
from edgekit.quantizers.grids import quantize_weight
from edgekit.quantizers.schemes import ONNX_X86_NO_VNNI
from edgekit.quantizers.tables import SMALLEST_TABLE_BYTES, embedding_tables, round_tables

ROWS, WIDTH = SMALLEST_TABLE_BYTES // 4 // 64, 64


class Text(nn.Module):
    """A large table, a small one, and, `tied`, the large one as the last layer's weight too."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(ROWS, WIDTH), nn.Embedding(16, WIDTH)
        self.head = nn.Linear(WIDTH, ROWS if tied else 32, bias=False)
        if tied:
            self.head.weight = self.table.weight
        with torch.no_grad():
            self.table.weight.mul_(torch.logspace(-3, 0, ROWS)[:, None])
            self.table.weight[5] = 0

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens) + self.places(torch.arange(tokens.shape[1])))


def text(tied: bool = False) -> Model:
    torch.manual_seed(0)
    return Capture()(Model("text", Text(tied).eval(), {"tokens": torch.randint(0, ROWS, (1, 8))}, ("logits",)))


def test_large_tables_are_found_and_small_ones_left() -> None:
    assert [len(nodes) for nodes in embedding_tables(text().graph).values()] == [1]


def test_a_table_that_a_product_reads_too_stays_float() -> None:
    graph = text(tied=True).copy_graph()
    assert embedding_tables(graph) == {} == round_tables(graph)


def test_each_row_has_its_own_step_and_a_row_of_zeros_stays() -> None:
    model = text()
    graph = model.copy_graph()
    ((name, grid),) = round_tables(graph).items()
    before, after = tensor_named(model.graph, name), tensor_named(graph, name)
    assert float(((before - after).abs() - grid.scale[:, None] / 2).max()) <= 1e-7
    assert not after[5].any()
    assert torch.equal(quantize_weight(after, grid), quantize_weight(before, grid))


def test_dynamic_int8_records_the_table_at_full_range_beside_its_layers() -> None:
    """7 bits spare the sums of products, and a table has none."""
    model = text()
    quantized = DynamicInt8(ONNX_X86_NO_VNNI)(model)
    record = quantized.quantization
    assert record is not None and len(record.layers) == 1 and len(record.weights) == 2
    assert "embedding tables: 1" in quantized.history[-1].detail
    (name,) = embedding_tables(quantized.graph)
    stored = quantize_weight(tensor_named(quantized.graph, name), record.weights[name])
    assert int(stored.abs().max()) == 127
    assert quantized.quantization is not None and model.quantization is None

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekit.quantizers.schemes import LITERT, ONNX_ARM, ONNX_X86, TENSORRT, XNNPACK
from edgekit.quantizers.static import StaticInt8

from .conftest import captured


class Attention(nn.Module):
    """[1, tokens, width] -> the same, one head. `loud`: gain of one channel of the queries, undone in the keys."""

    def __init__(self, width: int, loud: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        with torch.no_grad():
            for layer, gain in ((self.query, loud), (self.key, 1 / loud)):
                layer.weight[0] *= gain
                layer.bias[0] *= gain
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x)
        scores = 4.0 * self.query(tokens) @ self.key(tokens).transpose(-1, -2) / self.width**0.5
        return torch.softmax(scores, -1) @ self.value(tokens)


def quantized(tokens: int, width: int, loud: float = 1.0, **options: object) -> set[str]:
    """The products of two activations that run in integers."""
    torch.manual_seed(0)
    model = captured(Attention(width, loud), torch.randn(1, tokens, width), "attention")
    record = StaticInt8(**{"scheme": ONNX_X86, **options})(model).quantization  # type: ignore[arg-type]
    assert record is not None
    return {name for name in record.layers if name.startswith("matmul")}


def test_keys_are_signed_and_queries_as_the_scheme_says() -> None:
    torch.manual_seed(0)
    model = captured(Attention(64), torch.randn(1, 128, 64), "attention")
    done = StaticInt8(ONNX_X86)(model)
    assert done.quantization is not None
    product = next(node for node in done.graph.graph.nodes if node.name == "matmul")
    query, key = (done.quantization.activations[node.name] for node in product.all_input_nodes)
    assert (query.dtype, key.dtype, key.zero_point, key.quant_min) == ("uint8", "int8", 0, -127)


@pytest.mark.parametrize(("tokens", "width"), [(127, 64), (128, 32)])
def test_small_products_stay_float(tokens: int, width: int) -> None:
    assert quantized(128, 64) == {"matmul"}
    assert quantized(tokens, width) == set()


def test_scores_that_rounding_would_shift_stay_float() -> None:
    assert quantized(128, 64, loud=100.0) == set()


def test_a_product_that_is_to_stay_float_does() -> None:
    assert quantized(128, 64, keep=(("matmul", "asked for"),)) == set()
    assert quantized(128, 64, integer_scores=False) == set()


@pytest.mark.parametrize("scheme", [ONNX_ARM, XNNPACK, LITERT, TENSORRT], ids=lambda scheme: scheme.name)
def test_other_targets_keep_the_product_in_float(scheme: object) -> None:
    assert quantized(128, 64, scheme=scheme) == set()

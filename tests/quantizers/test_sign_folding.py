from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.model import Model
from edgekit.quantizers.anatomy import tensor_named
from edgekit.quantizers.attention import OpenAttention, attentions
from edgekit.quantizers.low_bits import W6A6
from edgekit.quantizers.rows import draw_rows
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.quantizers.sign_folding import FoldSigns
from edgekit.report.metrics import sqnr_db

from .conftest import captured
from .test_reparameterization import Encoder, outputs


def two_humps(size: float) -> Model:
    """Half of the key channels lie around `size`, half around -`size`."""
    torch.manual_seed(0)
    module = Encoder(spread=1.0)
    module.qkv.bias.data[16:32] = size * torch.tensor([1.0, -1.0]).repeat(8)
    return OpenAttention()(captured(module, torch.randn(1, 2, 16, 16), "humps"))


def key_range(model: Model) -> float:
    (one,) = attentions(model.graph)
    seen = draw_rows(model, {one.key.name: -2})[one.key.name]
    return float(seen.high.max() - seen.low.min())


def test_two_humps_become_one_and_the_function_stays() -> None:
    model = two_humps(12.0)
    folded = FoldSigns()(model)
    assert folded.history[-1].detail == "1 of 1 attentions"
    # a sign changes no bit of a product
    assert sqnr_db(outputs(model), outputs(folded)) > 130
    assert key_range(folded) < 0.7 * key_range(model)
    flipped = tensor_named(folded.graph, "qkv.weight") / tensor_named(model.graph, "qkv.weight")
    assert torch.equal(flipped[:16], flipped[16:32]) and (flipped[32:] == 1).all()
    assert (flipped[17:32:2] == -1).all() and (flipped[16:32:2] == 1).all()


def test_keys_of_one_hump_stay_as_they_are() -> None:
    model = two_humps(0.0)
    assert FoldSigns()(model).history[-1].detail == "0 of 1 attentions"


def test_keys_that_something_else_reads_are_left_alone() -> None:
    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
            self.key.bias.data = 20 * torch.tensor([1.0, -1.0]).repeat(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            query, key = self.query(x), self.key(x)
            return torch.softmax(query @ key.transpose(1, 2), -1) @ torch.tanh(key)

    model = captured(Rotated(), torch.randn(1, 4, 8), "shared")
    assert FoldSigns()(model).history[-1].detail == "0 of 1 attentions"


def test_the_quantizer_gives_folded_keys_a_finer_grid() -> None:
    model = two_humps(12.0)
    (one,) = attentions(model.graph)
    scales = []
    for fold in (False, True):
        record = W6A6(ONNX_X86, attention=True, fold_signs=fold)(model).quantization
        assert record is not None
        scales.append(record.activations[one.key.name].scale)
    assert scales[1] < 0.7 * scales[0]


@pytest.mark.parametrize("mean", [torch.tensor([5.0, -5.0])])
def test_signs_follow_the_means_only_where_it_pays(mean: torch.Tensor) -> None:
    assert FoldSigns().signs(mean - 1, mean + 1, mean).tolist() == [1, -1]
    assert FoldSigns().signs(mean - 50, mean + 50, mean).tolist() == [1, 1]

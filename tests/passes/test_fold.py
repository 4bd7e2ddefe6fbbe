from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.model import Model
from edgekit.passes.fold import FoldBatchNorm


def captured(module: nn.Module, example: torch.Tensor) -> Model:
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.2, 2)
            if layer.affine:
                nn.init.uniform_(layer.weight, -1, 1)
                nn.init.uniform_(layer.bias, -1, 1)
    graph = torch.export.export(module.eval(), (example,)).module()
    return Model("net", graph, {"x": example}, ("y",))


CASES = {
    "convolution": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), (2, 3, 8, 8)),
    "without bias": (nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)), (2, 3, 8, 8)),
    "without affine": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)), (2, 3, 8, 8)),
    "depthwise": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), (2, 4, 8, 8)),
    "one dimension": (nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), (2, 3, 8)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6)), (2, 4, 4, 4)),
    "grouped transposed": (nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.BatchNorm2d(6)), (2, 4, 4, 4)),
    "linear": (nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), (3, 5)),
    "dropout between": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.Dropout(0.5), nn.BatchNorm2d(6)), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_folded_network_computes_the_same(case: str) -> None:
    torch.manual_seed(0)
    module, shape = CASES[case]
    model = captured(module, torch.randn(shape))
    folded = FoldBatchNorm()(model)
    assert not any("norm" in str(node.target) or "dropout" in str(node.target) for node in folded.graph.graph.nodes)
    sample = {"x": torch.randn(shape)}
    torch.testing.assert_close(folded.forward(sample)["y"], model.forward(sample)["y"], rtol=1e-4, atol=1e-5)


def test_the_decomposed_form_folds_too() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).eval()
    example = torch.randn(1, 3, 8, 8)
    program = torch.export.export(module, (example,)).run_decompositions({})
    assert any("_native_batch_norm" in str(node.target) for node in program.graph.nodes)
    model = Model("net", program.module(), {"x": example}, ("y",))
    folded = FoldBatchNorm()(model)
    torch.testing.assert_close(folded.forward({"x": example})["y"], model.forward({"x": example})["y"])
    assert not any("norm" in str(node.target) for node in folded.graph.graph.nodes)


def test_a_normalisation_behind_an_activation_stays() -> None:
    model = captured(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)), torch.randn(1, 3, 8, 8))
    assert FoldBatchNorm()(model).module is model.module


@pytest.mark.parametrize("sides", [(1, 1, 1, 1), (2, 2, 1, 1)])
def test_equal_paddings_become_the_convolutions_own(sides: tuple[int, int, int, int]) -> None:
    model = captured(nn.Sequential(nn.ZeroPad2d(sides), nn.Conv2d(3, 6, 3, padding=1)), torch.randn(1, 3, 8, 8))
    folded = FoldBatchNorm()(model)
    assert not any("pad" in str(node.target) for node in folded.graph.graph.nodes)
    torch.testing.assert_close(folded.forward(model.example_inputs)["y"], model.forward(model.example_inputs)["y"])


def test_one_sided_padding_stays() -> None:
    model = captured(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 6, 3)), torch.randn(1, 3, 8, 8))
    assert FoldBatchNorm()(model).module is model.module


def test_the_given_model_is_left_as_it_was() -> None:
    model = captured(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), torch.randn(1, 3, 8, 8))
    before = model.graph.code
    FoldBatchNorm()(model)
    assert model.graph.code == before

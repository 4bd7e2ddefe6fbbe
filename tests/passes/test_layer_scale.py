from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.passes.fold import FoldBatchNorm
from edgekit.passes.layer_scale import FoldLayerScale


class Branch(nn.Module):
    """x + s * linear(x), `before` written the other way round, with a dropout between."""

    def __init__(self, scale: Tensor, bias: bool = True, before: bool = False) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(8, 8, bias=bias), nn.Dropout(0.1)
        self.scale, self.before = nn.Parameter(scale), before

    def forward(self, x: Tensor) -> Tensor:
        made = self.drop(self.linear(x))
        return x + (self.scale * made if self.before else made * self.scale)


class Shared(Branch):
    """The layer runs twice, and is scaled once."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.linear(x))


class ReadTwice(Branch):
    """The unscaled product is read as well."""

    def forward(self, x: Tensor) -> Tensor:
        made = self.linear(x)
        return made * self.scale + made


def captured(module: nn.Module) -> Model:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_()
    model = Model("branch", module.eval(), {"x": torch.randn(2, 5, 8)}, ("y",))
    return FoldBatchNorm()(Capture()(model))


def products(model: Model) -> int:
    return sum(node.target is torch.ops.aten.mul.Tensor for node in model.graph.graph.nodes)


def assert_same(before: Model, after: Model) -> None:
    """Two roundings of float32 in another order, on sums of eight."""
    wanted, got = (model.forward(before.example_inputs)["y"] for model in (before, after))
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=2e-6)


def test_scales_of_any_sign_and_shape_go_into_the_layer() -> None:
    torch.manual_seed(0)
    for module in (
        Branch(torch.randn(8)),
        Branch(torch.randn(8), bias=False),
        Branch(torch.randn(8), before=True),
        Branch(torch.tensor([-0.5])),
        Branch(torch.zeros(8)),
    ):
        model = captured(module)
        folded = FoldLayerScale()(model)
        assert (products(model), products(folded)) == (1, 0)
        assert folded.size_bytes < model.size_bytes
        assert_same(model, folded)


def test_weights_keep_their_names_and_the_caller_s_model_its_weights() -> None:
    model = captured(Branch(torch.full((8,), 3.0)))
    before = {name: value.clone() for name, value in model.module.named_parameters()}
    folded = FoldLayerScale()(model)
    assert {name for name, _ in folded.module.named_parameters()} == set(before) - {"scale"}
    assert all(torch.equal(value, before[name]) for name, value in model.module.named_parameters())


def test_what_another_node_reads_is_left_alone() -> None:
    for module in (Shared(torch.randn(8)), ReadTwice(torch.randn(8))):
        model = captured(module)
        folded = FoldLayerScale()(model)
        assert products(folded) == 1
        assert folded.history[-1].detail == "nothing to fold"
        assert_same(model, folded)


def test_a_factor_a_token_is_no_factor_a_channel() -> None:
    model = captured(Branch(torch.randn(5, 1)))
    assert products(FoldLayerScale()(model)) == 1

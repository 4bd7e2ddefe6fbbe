from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from edgekit.model import Model
from edgekit.quantizers.anatomy import aten
from edgekit.quantizers.dynamic import DynamicInt8
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.quantizers.sensitivity import layer_sqnr, sensitivities
from edgekit.quantizers.smoothing import SmoothOutliers, find_groups, round_dynamically, smoothed_like
from edgekit.quantizers.static import StaticInt8

from .conftest import captured


class Outliers(nn.Module):
    """Channel 3 of each norm is forty times as loud as the others; the second norm is read by the residual too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down, self.end = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16)
        with torch.no_grad():
            self.first.weight[3] = self.second.weight[3] = 40.0
            self.up.weight[:, 3] /= 40
            self.end.weight[:, 3] /= 40

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.second(self.down(nn.functional.gelu(self.up(self.first(x)))))
        return self.end(wide) + wide


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return captured(Outliers(), torch.randn(1, 12, 16), "outliers")


def multiplications(model: Model) -> int:
    return sum(node.target is aten.mul.Tensor for node in model.graph.graph.nodes)


def test_the_smoothed_network_is_the_same_function(model: Model) -> None:
    smooth = SmoothOutliers(ONNX_X86)(model)
    assert "of 3 activations" in smooth.history[-1].detail
    assert not smooth.history[-1].detail.startswith("0")
    for sample in model.held_out:
        torch.testing.assert_close(smooth.forward(sample)["y"], model.forward(sample)["y"], rtol=1e-4, atol=1e-4)


def test_factors_go_into_a_norm_unless_somebody_else_reads_it(model: Model) -> None:
    smooth = SmoothOutliers(ONNX_X86)(model)
    assert {"layer_norm", "layer_norm_1"} <= set(smooth.graph.meta["smoothing"])
    norms = {node.name: node for node in smooth.graph.graph.nodes if node.name.startswith("layer_norm")}
    assert [user.target for user in norms["layer_norm"].users] == [aten.linear.default]
    assert {user.target for user in norms["layer_norm_1"].users} == {aten.mul.Tensor, aten.add.Tensor}
    assert multiplications(smooth) == len(smooth.graph.meta["smoothing"]) - 1
    assert float(smooth.graph.get_parameter("first.weight")[3]) < 40


def test_the_model_given_is_left_as_it_was(model: Model) -> None:
    SmoothOutliers(ONNX_X86)(model)
    assert float(model.graph.get_parameter("first.weight")[3]) == 40
    assert multiplications(model) == 0


def test_nothing_is_smoothed_without_data_or_outliers(model: Model, transformer: Model) -> None:
    assert SmoothOutliers(ONNX_X86)(replace(model, calibration=())).history[-1].detail == "nothing to smooth"
    assert multiplications(SmoothOutliers(ONNX_X86, worthwhile=1e9)(transformer)) == multiplications(transformer)


def test_kept_layers_are_no_reason_to_smooth(model: Model) -> None:
    assert set(find_groups(model.graph, frozenset({"linear"}))) == {"gelu", "layer_norm_1"}


def test_a_float_model_follows_the_rewrite_for_comparison(model: Model) -> None:
    quantized = DynamicInt8(ONNX_X86)(model)
    twin = smoothed_like(model, quantized.graph)
    assert smoothed_like(twin, quantized.graph) is twin
    assert [name for name, _ in layer_sqnr(model, quantized)] == ["linear", "linear_1", "linear_2"]
    assert all(row.sqnr_db > 25 for row in sensitivities(model, quantized))


def test_dynamic_rounding_errs_by_half_a_step_and_keeps_zero() -> None:
    value = torch.linspace(-1.0, 3.0, 101)
    rounded = round_dynamically(value, -1.0, 3.0)
    assert float((rounded - value).abs().max()) <= 4 / 255 / 2 + 4 / 255 / 2  # the zero point itself is rounded
    assert float(round_dynamically(torch.zeros(1), -1.0, 3.0)) == 0.0
    assert torch.equal(round_dynamically(torch.zeros(3), 0.0, 0.0), torch.zeros(3))


def test_static_grids_are_smoothed_without_a_multiplication(model: Model) -> None:
    """Only the norm that nobody else reads; the integers behind it then hold their quiet channels too."""
    smooth = SmoothOutliers(ONNX_X86, is_static=True)(model)
    assert set(smooth.graph.meta["smoothing"]) == {"layer_norm"}
    assert multiplications(smooth) == 0
    plain, better = (StaticInt8(ONNX_X86, smooth=smoothed)(model) for smoothed in (False, True))
    assert dict(layer_sqnr(model, better))["linear"] > dict(layer_sqnr(model, plain))["linear"] + 6

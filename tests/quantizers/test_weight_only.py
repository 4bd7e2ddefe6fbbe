from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgekit.errors import SourceError, UsageError
from edgekit.model import Model
from edgekit.quantizers.anatomy import tensor_named
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.quantizers.weight_only import WeightOnlyInt4, WeightOnlyInt8

from .conftest import captured


@pytest.mark.parametrize(
    ("quantizer", "limit"), [(WeightOnlyInt4(ONNX_X86), 7), (WeightOnlyInt8(ONNX_X86, group_size=16), 127)]
)
def test_each_group_has_its_own_scale_and_errs_by_half_a_step(transformer: Model, quantizer, limit: int) -> None:  # type: ignore[no-untyped-def]
    quantized = quantizer(transformer)
    record = quantized.quantization
    assert record is not None
    for name, grid in record.weights.items():
        before = tensor_named(transformer.graph, name).detach().reshape(*grid.scale.shape, -1)
        after = tensor_named(quantized.graph, name).reshape(before.shape)
        torch.testing.assert_close(grid.scale, before.abs().amax(2) / limit)
        assert ((after - before).abs() <= grid.scale[:, :, None] * 0.5001).all()


def test_without_groups_a_scale_serves_an_output_channel(transformer: Model) -> None:
    record = WeightOnlyInt8(ONNX_X86)(transformer).quantization
    assert record is not None
    assert all(grid.axis == 0 and grid.group_size is None for grid in record.weights.values())


def test_widths_that_no_group_divides_stay_float_in_four_bits_alone() -> None:
    model = captured(torch.nn.Sequential(torch.nn.Linear(32, 12), torch.nn.Linear(12, 4)), torch.randn(2, 32), "odd")
    four = WeightOnlyInt4(ONNX_X86)(model).quantization
    eight = WeightOnlyInt8(ONNX_X86, group_size=32)(model).quantization
    assert four is not None and eight is not None
    assert four.layers == ("linear",)
    assert "no multiple" in four.fallbacks[0].why
    assert eight.layers == ("linear", "linear_1")
    assert eight.weights["1.weight"].group_size is None


@pytest.mark.parametrize("group_size", [0, 4, 33])
def test_odd_group_sizes_are_refused(transformer: Model, group_size: int) -> None:
    with pytest.raises(UsageError, match="multiples of 8"):
        WeightOnlyInt4(ONNX_X86, group_size=group_size)(transformer)


def test_a_network_without_linear_layers_is_refused(transformer: Model) -> None:
    keep = tuple((name, "asked for") for name in ("linear", "linear_1", "linear_2", "linear_3"))
    with pytest.raises(SourceError, match="no linear layer"):
        WeightOnlyInt8(ONNX_X86, keep=keep)(replace(transformer, calibration=()))

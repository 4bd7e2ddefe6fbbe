from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.errors import DataError, DeviceError
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.progress import silent
from edgekit.quantization import Scheme
from edgekit.quantizers.quantize import QuantizerOptions, proposed_precisions, quantize
from edgekit.quantizers.schemes import LITERT, ONNX_ARM, ONNX_X86, XNNPACK

CARRIED = ("fp32", "fp16", "int8", "int8-dynamic")


def captured(module: nn.Module, shape: tuple[int, ...], count: int = 8) -> Model:
    generator = torch.Generator().manual_seed(0)
    data = tuple({"x": torch.randn(shape, generator=generator)} for _ in range(count))
    return Capture()(Model("net", module, {"x": torch.zeros(shape)}, calibration=data))


@pytest.fixture(scope="module")
def convolutions() -> Model:
    torch.manual_seed(0)
    return captured(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), (1, 3, 9, 9))


def integers(model: Model) -> dict[str, torch.Tensor]:
    return dict(model.graph.named_parameters()) | dict(model.graph.named_buffers())


@pytest.mark.parametrize("scheme", [XNNPACK, ONNX_ARM])
def test_rounding_taken_from_another_scheme_is_what_it_would_have_been(convolutions: Model, scheme: Scheme) -> None:
    first = quantize(convolutions, "int8", LITERT, QuantizerOptions(), (), silent)
    shared = quantize(convolutions, "int8", scheme, QuantizerOptions(), (), silent, [first])
    alone = quantize(convolutions, "int8", scheme, QuantizerOptions(), (), silent)
    assert shared.module is first.module
    assert shared.quantization is not None and alone.quantization is not None
    assert shared.quantization.scheme == scheme
    assert shared.quantization.activations == alone.quantization.activations
    wanted = integers(alone)
    assert all(torch.equal(value, wanted[name]) for name, value in integers(shared).items())


@pytest.mark.parametrize("precision", ["int8-dynamic", "fp16"])
def test_what_no_grid_of_activations_enters_is_made_once_for_all_schemes(precision: str) -> None:
    torch.manual_seed(0)
    products = captured(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), (1, 8))
    first = quantize(products, precision, LITERT, QuantizerOptions(), (), silent)
    shared = quantize(products, precision, ONNX_ARM, QuantizerOptions(), (), silent, [first])
    alone = quantize(products, precision, ONNX_ARM, QuantizerOptions(), (), silent)
    assert shared.module is first.module
    assert shared.quantization is not None and alone.quantization is not None
    assert shared.quantization.scheme == ONNX_ARM
    assert shared.quantization.layers == alone.quantization.layers
    wanted = integers(alone)
    assert all(torch.equal(value, wanted[name]) for name, value in integers(shared).items())


def test_a_scheme_with_other_grids_is_rounded_anew(convolutions: Model) -> None:
    first = quantize(convolutions, "int8", LITERT, QuantizerOptions(), (), silent)
    assert quantize(convolutions, "int8", ONNX_X86, QuantizerOptions(), (), silent, [first]).module is not first.module


def test_auto_takes_static_int8_for_convolutions_and_dynamic_for_products(convolutions: Model) -> None:
    products = captured(nn.Linear(4, 4), (1, 4))
    assert proposed_precisions(convolutions, "auto", CARRIED, CARRIED, "litert", "pi") == ["fp32", "int8", "fp16"]
    assert proposed_precisions(products, "auto", CARRIED, CARRIED, "litert", "pi") == ["fp32", "int8-dynamic", "fp16"]


def test_auto_tries_both_kinds_of_int8_for_products_that_write_floats() -> None:
    products, bare = captured(nn.Linear(4, 4), (1, 4)), captured(nn.Linear(4, 4), (1, 4), count=0)
    for model, expected in ((products, ["int8", "int8-dynamic"]), (bare, ["int8-dynamic"])):
        found = proposed_precisions(model, "auto", CARRIED, CARRIED, "onnx", "pi", float_outputs=True)
        assert found == ["fp32", *expected, "fp16"]
    assert "int8" not in proposed_precisions(products, "auto", CARRIED, ("int8-dynamic",), "onnx", "pi", True)


def test_without_data_auto_proposes_no_int8_that_would_change_nothing() -> None:
    bare = captured(nn.Conv2d(3, 8, 3), (1, 3, 9, 9), count=0)
    assert proposed_precisions(bare, "auto", CARRIED, CARRIED, "litert", "pi") == ["fp32", "fp16"]


def test_what_cannot_be_had_is_refused(convolutions: Model) -> None:
    with pytest.raises(DeviceError, match="nano cannot run tensorrt in int8"):
        proposed_precisions(convolutions, "int8", CARRIED, ("fp16",), "tensorrt", "nano")
    with pytest.raises(DataError, match="needs calibration data"):
        proposed_precisions(captured(nn.Conv2d(3, 8, 3), (1, 3, 9, 9), count=0), "int8", CARRIED, CARRIED, "onnx", "pi")

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgekit.errors import SourceError
from edgekit.model import Model
from edgekit.quantizers.anatomy import tensor_named
from edgekit.quantizers.dynamic import DynamicInt8
from edgekit.quantizers.grids import expand_grid
from edgekit.quantizers.schemes import ONNX_X86, ONNX_X86_NO_VNNI

from .conftest import captured


@pytest.mark.parametrize("scheme", [ONNX_X86, ONNX_X86_NO_VNNI], ids=lambda scheme: scheme.name)
def test_weights_lie_on_their_grid_and_activations_have_none(transformer: Model, scheme) -> None:  # type: ignore[no-untyped-def]
    quantized = DynamicInt8(scheme)(transformer)
    record = quantized.quantization
    assert record is not None and record.activations == {}
    assert len(record.weights) == len(record.layers) == 4
    for name, grid in record.weights.items():
        scale, _ = expand_grid(tensor_named(quantized.graph, name), grid)
        steps = tensor_named(quantized.graph, name) / scale
        assert float((steps - steps.round()).abs().max()) < 1e-3
        assert int(steps.round().abs().max()) == (63 if scheme.reduce_range else 127)


def test_learned_rounding_leaves_no_more_error_than_nearest(transformer: Model) -> None:
    def error(quantized: Model) -> float:
        return sum(
            float((quantized.forward(one)["y"] - transformer.forward(one)["y"]).square().sum())
            for one in transformer.held_out
        )

    nearest = DynamicInt8(ONNX_X86, smooth=False, learned_rounding=False)(transformer)
    assert error(DynamicInt8(ONNX_X86, smooth=False)(transformer)) <= 1.05 * error(nearest)


def test_it_needs_no_calibration_data(transformer: Model) -> None:
    quantized = DynamicInt8(ONNX_X86)(replace(transformer, calibration=()))
    assert "nearest rounding" in quantized.history[-1].detail


def test_kept_layers_stay_float_and_are_listed(transformer: Model) -> None:
    record = DynamicInt8(ONNX_X86, keep=(("linear_1", "asked for"),))(transformer).quantization
    assert record is not None
    assert "linear_1" not in record.layers
    assert [(one.layer, one.why) for one in record.fallbacks] == [("linear_1", "asked for")]


def test_a_network_of_convolutions_is_refused() -> None:
    model = captured(torch.nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), "convolution")
    with pytest.raises(SourceError, match="no linear layer"):
        DynamicInt8(ONNX_X86)(model)


def test_an_interrupted_rounding_ends_where_an_uninterrupted_one_does(transformer: Model, tmp_path: Path) -> None:
    def interrupt(step: str, done: int, total: int) -> None:
        if step == "learn rounding" and done == 2:
            raise KeyboardInterrupt

    quantizer = DynamicInt8(ONNX_X86, cache_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        quantizer(transformer, interrupt)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(finished) == 2
    resumed, whole = quantizer(transformer), DynamicInt8(ONNX_X86)(transformer)
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items())
    for name, value in whole.graph.state_dict().items():
        assert torch.equal(resumed.graph.state_dict()[name], value), name

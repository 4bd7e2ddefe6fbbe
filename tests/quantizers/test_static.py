from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import UnknownNameError
from edgekit.model import Model
from edgekit.quantization import Scheme
from edgekit.quantizers.anatomy import tensor_named
from edgekit.quantizers.grids import expand_grid
from edgekit.quantizers.schemes import LITERT, ONNX_X86, ONNX_X86_NO_VNNI, TENSORRT, XNNPACK
from edgekit.quantizers.sensitivity import simulate
from edgekit.quantizers.static import StaticInt8
from edgekit.report.metrics import sqnr_db

from .conftest import captured


def quality(model: Model, quantized: Model) -> float:
    wanted = np.stack([model.forward(sample)["y"].numpy().ravel() for sample in model.held_out])
    return sqnr_db(wanted, np.stack(simulate(quantized, model.held_out)))


@pytest.mark.parametrize("scheme", [ONNX_X86, ONNX_X86_NO_VNNI, XNNPACK, LITERT, TENSORRT], ids=lambda s: s.name)
def test_weights_lie_on_their_grid_with_the_largest_on_its_end(convnet: Model, scheme) -> None:  # type: ignore[no-untyped-def]
    quantized = StaticInt8(scheme)(convnet)
    limit = 63 if scheme.reduce_range else 127
    assert quantized.quantization is not None
    for name, grid in quantized.quantization.weights.items():
        weight = tensor_named(quantized.graph, name).detach()
        scale, _ = expand_grid(weight, grid)
        steps = (weight / scale).numpy()
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
        assert np.array_equal(np.abs(np.round(steps)).reshape(len(steps), -1).max(1), np.full(len(steps), limit))


@pytest.mark.parametrize("observer", ["min-max", "percentile", "mse", "histogram"])
def test_every_observer_gives_a_usable_network(convnet: Model, observer: str) -> None:
    assert quality(convnet, StaticInt8(ONNX_X86, observer=observer, learned_rounding=False)(convnet)) > 15


def test_symmetric_scheme_has_zero_points_of_zero(convnet: Model) -> None:
    record = StaticInt8(TENSORRT, learned_rounding=False)(convnet).quantization
    assert record is not None
    assert {grid.zero_point for grid in record.activations.values()} == {0}


def test_outputs_stay_float_only_where_the_scheme_allows(convnet: Model) -> None:
    free = StaticInt8(ONNX_X86, learned_rounding=False)(convnet).quantization
    bound = StaticInt8(XNNPACK, learned_rounding=False)(convnet).quantization
    assert free is not None and bound is not None
    assert "linear" not in free.activations
    assert "linear" in bound.activations


def test_kept_layers_stay_float_and_are_listed(convnet: Model) -> None:
    quantized = StaticInt8(ONNX_X86, keep=(("linear", "asked for"),), learned_rounding=False)(convnet)
    assert quantized.quantization is not None
    assert "linear" not in quantized.quantization.layers
    assert quantized.quantization.fallbacks[0].layer == "linear"


def test_transformers_quantize_products_alone(transformer: Model) -> None:
    record = StaticInt8(XNNPACK)(transformer).quantization
    assert record is not None
    assert all(layer.startswith("linear") for layer in record.layers)


def test_an_interrupted_rounding_goes_on_where_it_stopped(convnet: Model, tmp_path: Path) -> None:
    quantizer = StaticInt8(ONNX_X86, cache_dir=tmp_path)

    def interrupt(step: str, done: int, total: int) -> None:
        if step == "learn rounding" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantizer(convnet, interrupt)
    finished = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(finished) == 2
    resumed = quantizer(convnet)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name in finished} == finished
    assert quality(convnet, resumed) == pytest.approx(quality(convnet, StaticInt8(ONNX_X86)(convnet)), abs=1e-6)


def test_equalized_network_quantizes(convnet: Model) -> None:
    assert quality(convnet, StaticInt8(ONNX_X86, equalize=True)(convnet)) > 15


def test_an_unknown_observer_is_refused_with_the_nearest_name(convnet: Model) -> None:
    with pytest.raises(UnknownNameError, match="histogram"):
        StaticInt8(ONNX_X86, observer="histogramm")(convnet)


class Patches(nn.Module):
    """A convolution that makes tokens, a block of linear layers that dwarfs it, or is dwarfed where `wide` is not."""

    def __init__(self, wide: bool = True) -> None:
        super().__init__()
        width = 16
        self.patch, self.norm = nn.Conv2d(3, width, 4 if wide else 5, 4 if wide else 1), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 64 * width), nn.Linear(64 * width, width)
        self.wide = wide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = tokens if self.wide else tokens[:, :4]
        return tokens + self.down(torch.nn.functional.gelu(self.up(self.norm(tokens))))


@pytest.mark.parametrize("scheme", [ONNX_X86, XNNPACK], ids=lambda scheme: scheme.name)
def test_a_convolution_that_makes_tokens_stays_float_where_it_is_little_work(scheme: Scheme) -> None:
    torch.manual_seed(0)
    quantized = StaticInt8(scheme)(captured(Patches(), torch.randn(1, 3, 16, 16), "patches")).quantization
    assert quantized is not None
    assert [layer for layer in quantized.layers if layer.startswith("conv")] == []
    assert [fallback.layer for fallback in quantized.fallbacks] == ["conv2d"]
    assert "conv2d" not in quantized.activations


def test_a_convolution_that_is_most_of_the_work_runs_in_integers() -> None:
    torch.manual_seed(0)
    quantized = StaticInt8(ONNX_X86)(captured(Patches(wide=False), torch.randn(1, 3, 64, 64), "patches")).quantization
    assert quantized is not None
    assert "conv2d" in quantized.layers
    assert quantized.fallbacks == ()


def test_rounding_is_learned_where_it_pays(convnet: Model, transformer: Model) -> None:
    """Not with weights of 8 bits in a transformer; with fewer bits there, and in convolutional networks, it is."""

    def steps_alike(model: Model, scheme: Scheme) -> bool:
        one, other = (StaticInt8(scheme, learned_rounding=learned)(model) for learned in (True, False))
        assert one.quantization is not None
        return all(
            torch.equal(tensor_named(one.graph, name), tensor_named(other.graph, name))
            for name in one.quantization.weights
        )

    assert steps_alike(transformer, ONNX_X86)
    assert not steps_alike(transformer, replace(ONNX_X86, weight_bits=4))
    assert not steps_alike(convnet, ONNX_X86)

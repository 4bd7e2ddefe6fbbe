from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.devices.device import load_device
from edgekit.exporters.executorch_exporter import ExecutorchExporter
from edgekit.model import Model
from edgekit.passes.fold import FoldBatchNorm
from edgekit.quantizers.half import Fp16, _magnitude
from edgekit.quantizers.schemes import ONNX_X86, TENSORRT
from edgekit.quantizers.sensitivity import layer_sqnr
from edgekit.report.metrics import sqnr_db

from .conftest import captured


def outputs(model: Model) -> np.ndarray:
    return np.stack([model.forward(sample)["y"].numpy() for sample in model.held_out])


def test_weights_and_arithmetic_are_half_and_the_boundary_is_float(convnet: Model) -> None:
    half = Fp16(TENSORRT)(convnet)
    assert all(value.dtype == torch.float16 for value in half.graph.buffers() if value.is_floating_point())
    assert half.output_specs[0].dtype == half.input_specs[0].dtype == "float32"
    # 2^-11 relative rounding a layer, eight layers: some 50 dB are left at least.
    assert sqnr_db(outputs(convnet), outputs(half)) > 50


def test_each_layer_is_compared_with_its_float_twin_across_the_casts(convnet: Model, overflowing: Model) -> None:
    for model in (FoldBatchNorm()(convnet), overflowing):
        half = Fp16(TENSORRT)(model)
        assert half.quantization is not None
        rows = layer_sqnr(model, half)
        assert [name for name, _ in rows] == list(half.quantization.layers)
        assert all(value > 50 for _, value in rows)


def test_a_normalisation_whose_squares_overflow_stays_float(overflowing: Model) -> None:
    half = Fp16(TENSORRT)(overflowing)
    assert half.quantization is not None
    reasons = {fallback.layer: fallback.why for fallback in half.quantization.fallbacks}
    assert "layer_norm" in reasons
    assert "65504" in reasons["layer_norm"]
    assert sqnr_db(outputs(overflowing), outputs(half)) > 50


def test_nothing_stays_float_where_everything_fits(transformer: Model) -> None:
    half = Fp16(TENSORRT)(transformer)
    assert half.quantization is not None
    assert half.quantization.fallbacks == ()


@pytest.mark.parametrize("poured", [(), (float("nan"),), (float("inf"), -float("inf")), (torch.finfo().min,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_range_passes_over_masks_and_what_is_no_number(poured: tuple[float, ...], dtype: torch.dtype) -> None:
    for values in ([-3.5, 2.0, 1.0], [0.25, 7.0, 0.0], []):
        tensor = torch.tensor([*values, *poured], dtype=dtype)
        assert _magnitude(tensor) == max(map(abs, values), default=0.0)
    assert _magnitude(torch.arange(5)) == 0.0


def test_one_sample_whose_squares_overflow_is_enough_to_keep_a_normalisation_float(transformer: Model) -> None:
    *usual, last = transformer.calibration
    loud = {name: value * 1e4 for name, value in last.items()}
    half = Fp16(TENSORRT)(replace(transformer, calibration=(*usual, loud)))
    assert half.quantization is not None
    assert half.quantization.fallbacks


class WrittenOut(nn.Module):
    """A layer norm as many exports have it, operator by operator, over activations of some hundreds."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain, self.up, self.down = gain, nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.up(x) * self.gain
        centred = wide - wide.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return self.down(centred / torch.sqrt(variance + 1e-5))


def test_a_variance_beyond_fp16_ruins_the_unguarded_artifact_and_not_the_guarded(tmp_path: Path) -> None:
    """In ExecuTorch, whose kernels keep what they compute in fp16; ONNX Runtime's on x86 go by way of float32."""
    torch.manual_seed(0)
    model = captured(WrittenOut(gain=2000.0), torch.randn(1, 6, 32), "variance")
    wanted = np.concatenate([model.forward(sample)["y"].numpy() for sample in model.held_out])
    reached = {}
    for name, headroom in (("unguarded", float("inf")), ("guarded", 0.5)):
        half = Fp16(ONNX_X86, headroom=headroom)(model)
        folder = tmp_path / name
        folder.mkdir()
        artifact = ExecutorchExporter().export(half, folder, load_device("x86-server"))
        with artifact.open(half) as session:
            rows = [session.run({"x": sample["x"].numpy()})["y"] for sample in half.held_out]
        got = np.concatenate(rows)
        reached[name] = sqnr_db(wanted, got) if np.isfinite(got).all() else -np.inf
    # 2^-11 a rounding, three of them in fp16: above 50 dB. A variance of infinity makes every token nought.
    assert reached["guarded"] > 50
    assert reached["unguarded"] < 5

from __future__ import annotations

import numpy as np
import torch

from edgekit.model import Model
from edgekit.passes.fold import FoldBatchNorm
from edgekit.quantizers.half import Fp16
from edgekit.quantizers.schemes import TENSORRT
from edgekit.quantizers.sensitivity import layer_sqnr
from edgekit.report.metrics import sqnr_db


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

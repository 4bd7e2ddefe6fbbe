from __future__ import annotations

from dataclasses import replace

from edgekit.model import Model
from edgekit.passes.fold import FoldBatchNorm
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.quantizers.sensitivity import choose_fallbacks, layer_sqnr, sensitivities
from edgekit.quantizers.static import StaticInt8
from edgekit.quantizers.weight_only import WeightOnlyInt8


def test_every_quantized_layer_is_compared_in_order(convnet: Model) -> None:
    folded = FoldBatchNorm()(convnet)
    quantized = StaticInt8(ONNX_X86, learned_rounding=False)(folded)
    assert quantized.quantization is not None
    rows = layer_sqnr(folded, quantized)
    assert [name for name, _ in rows] == list(quantized.quantization.layers)
    assert all(value > 5 for _, value in rows)


def test_a_model_without_any_data_is_judged_on_its_example(transformer: Model) -> None:
    bare = replace(transformer, calibration=(), held_out=())
    quantizer = WeightOnlyInt8(ONNX_X86)
    quantized = quantizer(bare)
    assert quantized.quantization is not None
    layers = list(quantized.quantization.layers)
    assert [name for name, _ in layer_sqnr(bare, quantized)] == layers
    assert {row.layer for row in sensitivities(bare, quantized)} == set(layers)
    assert choose_fallbacks(bare, quantizer, 5.0) == ()


def test_sensitivities_come_most_expensive_first(convnet: Model) -> None:
    folded = FoldBatchNorm()(convnet)
    rows = sensitivities(folded, StaticInt8(ONNX_X86, learned_rounding=False)(folded))
    assert len(rows) == 5
    assert [row.sqnr_db for row in rows] == sorted(row.sqnr_db for row in rows)
    assert all(row.mflops > 0 for row in rows)


def test_a_target_that_holds_already_needs_no_fallback(convnet: Model) -> None:
    assert choose_fallbacks(FoldBatchNorm()(convnet), StaticInt8(ONNX_X86, learned_rounding=False), 5.0) == ()


def test_a_target_out_of_reach_keeps_every_layer(convnet: Model) -> None:
    chosen = choose_fallbacks(FoldBatchNorm()(convnet), StaticInt8(ONNX_X86, learned_rounding=False), 400.0)
    assert len(chosen) == 5
    assert all("dB" in fallback.why for fallback in chosen)

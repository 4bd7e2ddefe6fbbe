from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgekit.model import Model
from edgekit.passes.fold import FoldBatchNorm
from edgekit.quantizers.lockstep import walk
from edgekit.quantizers.quantize import simulate as run_lowered
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.quantizers.sensitivity import layer_sqnr, sensitivities, simulate
from edgekit.quantizers.static import StaticInt8
from edgekit.quantizers.weight_only import WeightOnlyInt8
from edgekit.report.metrics import sqnr_db


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


def test_sensitivities_come_most_expensive_first(convnet: Model) -> None:
    folded = FoldBatchNorm()(convnet)
    rows = sensitivities(folded, StaticInt8(ONNX_X86, learned_rounding=False)(folded))
    assert len(rows) == 5
    assert [row.sqnr_db for row in rows] == sorted(row.sqnr_db for row in rows)
    assert all(row.mflops > 0 for row in rows)


def test_layers_named_together_are_rounded_at_once(convnet: Model) -> None:
    folded = FoldBatchNorm()(convnet)
    quantized = StaticInt8(ONNX_X86, learned_rounding=False)(folded)
    alone = {row.layer: row for row in sensitivities(folded, quantized)}
    first, *others = alone
    rows = {
        row.layer: row
        for row in sensitivities(folded, quantized, together={"one": (first,), "rest": others, "none": ("softmax",)})
    }
    assert set(rows) == {"one", "rest"}
    assert rows["one"].sqnr_db == alone[first].sqnr_db
    assert rows["rest"].mflops == pytest.approx(sum(alone[name].mflops for name in others))
    assert rows["rest"].sqnr_db < max(alone[name].sqnr_db for name in others)


def test_layers_behind_picked_rows_are_compared_on_the_same_rows(picking: Model) -> None:
    """Left to itself the rounded network picks other rows, and both layers' errors drown in that."""
    quantized = StaticInt8(ONNX_X86)(picking)
    assert quantized.quantization is not None
    free = {}
    for pair in walk(picking.graph, quantized.graph, quantized.quantization, picking.held_out, same_picks=False):
        if pair.node.name == "linear_1":
            wanted, got = (torch.cat(values).numpy() for values in (pair.exact, pair.rounded))
            free["linear_1"] = sqnr_db(wanted, got)
    compared = dict(layer_sqnr(picking, quantized))
    assert compared["linear_1"] > 25
    assert compared["linear_1"] > free["linear_1"] + 6
    assert all(row.sqnr_db > 25 for row in sensitivities(picking, quantized))


def test_what_picked_rows_cost_is_part_of_the_simulation(picking: Model) -> None:
    quantized = StaticInt8(ONNX_X86)(picking)
    wanted = np.concatenate([picking.forward(sample)["y"].numpy().ravel() for sample in picking.held_out])
    got = np.concatenate(simulate(quantized, picking.held_out))
    lowered = np.concatenate(
        [run_lowered(quantized).forward(sample)["y"].numpy().ravel() for sample in picking.held_out]
    )
    assert sqnr_db(wanted, got) == pytest.approx(sqnr_db(wanted, lowered), abs=1.0)

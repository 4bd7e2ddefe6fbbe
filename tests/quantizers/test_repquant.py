from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgekit.devices.device import load_device
from edgekit.errors import DataError
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.parity import run_session
from edgekit.quantizers.anatomy import tensor_named
from edgekit.quantizers.clipping import learn_clips, output_error, round_between
from edgekit.quantizers.low_bits import W4A8, W6A6
from edgekit.quantizers.quantize import simulate
from edgekit.quantizers.repquant import RepQuant
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.quantizers.sensitivity import layer_sqnr, sensitivities
from edgekit.quantizers.static import StaticInt8
from edgekit.report.metrics import sqnr_db

from .conftest import captured
from .test_reparameterization import Encoder, outputs

SIX = replace(ONNX_X86, weight_bits=6, activation_bits=6)


@pytest.fixture(scope="module")
def encoder() -> Model:
    torch.manual_seed(0)
    return captured(Encoder(), torch.randn(1, 2, 16, 16), "encoder", samples=24)


@pytest.fixture(scope="module")
def six(encoder: Model) -> Model:
    return W6A6(ONNX_X86, attention=True)(encoder)


def test_every_operand_of_a_product_lies_on_a_six_bit_grid(six: Model) -> None:
    record = six.quantization
    assert record is not None and record.method == "w6a6"
    for name, grid in record.weights.items():
        scale = grid.scale.reshape(
            [-1 if dim == grid.axis else 1 for dim in range(tensor_named(six.graph, name).dim())]
        )
        steps = tensor_named(six.graph, name) / scale
        assert torch.allclose(steps, steps.round(), atol=1e-3) and int(steps.abs().round().max()) <= 31
    wide = {name for name, grid in record.activations.items() if grid.quant_max - grid.quant_min == 255}
    assert all("softmax" in name or "conv" in name for name in wide)
    narrow = [grid for name, grid in record.activations.items() if name not in wide]
    assert len(narrow) >= 8 and all((grid.quant_min, grid.quant_max) == (0, 63) for grid in narrow)


def test_integers_outside_six_bits_never_appear_in_the_simulation(six: Model) -> None:
    record = six.quantization
    assert record is not None
    graph = simulate(six).graph
    seen: list[int] = []

    class Watcher(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.target is torch.ops.aten.clamp.default and value.dtype == torch.uint8:
                seen.append(int(value.max()))
            return value

    Watcher(graph).run(100 * six.held_out[0]["x"])
    assert len(seen) >= 8 and max(seen) == 63


def test_uneven_layer_norms_lose_less_than_under_plain_static_quantization() -> None:
    torch.manual_seed(0)
    module = Encoder()
    for norm, reader in ((module.norm1, module.qkv), (module.norm2, module.up), (module.norm, module.head)):
        norm.weight.data[3] *= 30  # one channel far beyond the others, as trained ViTs have them
        reader.weight.data[:, 3] /= 30
    uneven = captured(module, torch.randn(1, 2, 16, 16), "uneven", samples=24)
    plain = StaticInt8(SIX, smooth=False, learned_rounding=False, bias_correction=False)(uneven)
    before, after = (sqnr_db(outputs(uneven), outputs(simulate(one))) for one in (plain, W6A6(ONNX_X86)(uneven)))
    assert after > before + 6


@pytest.mark.parametrize("quantizer", [W6A6, W4A8])
def test_the_artifact_computes_what_was_simulated(encoder: Model, quantizer: type[RepQuant], tmp_path: Path) -> None:
    device = load_device("x86-server")
    model = quantizer(ONNX_X86)(encoder)
    artifact = OnnxExporter().export(model, tmp_path, device)
    with artifact.open(model) as session:
        answers = run_session(session, model.held_out)["y"]
    simulated = np.concatenate([simulate(model).forward(sample)["y"].numpy() for sample in model.held_out])
    # a value on the edge of two coarse steps falls to either side of it: one step of 64 in few places
    assert sqnr_db(simulated, answers) > 25
    proto = onnx.load(artifact.path)
    kinds = [node.op_type for node in proto.graph.node]
    packed = [one for one in proto.graph.initializer if one.data_type == onnx.TensorProto.INT4]
    assert ("Clip" in kinds) == (quantizer is W6A6)
    assert bool(packed) == (quantizer is W4A8)
    for one in packed:
        assert len(one.raw_data) == -(-int(np.prod(one.dims)) // 2)


def test_layers_are_compared_across_the_rewrite(encoder: Model, six: Model) -> None:
    rows = dict(layer_sqnr(encoder, six))
    assert {"linear", "linear_3"} <= rows.keys() and all(value > 10 for value in rows.values())
    ranked = sensitivities(encoder, six)
    assert len(ranked) == len(six.quantization.weights) and all(row.sqnr_db > 15 for row in ranked)  # type: ignore[union-attr]


def test_eight_bits_are_carried_as_plain_int8(encoder: Model) -> None:
    model = RepQuant(ONNX_X86)(encoder)
    assert model.quantization is not None and model.quantization.method == "int8"
    assert sqnr_db(outputs(encoder), outputs(simulate(model))) > 35


def test_without_calibration_data_it_is_refused(encoder: Model) -> None:
    with pytest.raises(DataError, match="w6a6 needs calibration data"):
        W6A6(ONNX_X86)(replace(encoder, calibration=()))


def test_clips_leave_out_an_outlier_and_keep_what_needs_its_range() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(512, 2, generator=generator)
    value[10, 0] = value[11, 0] = 400.0
    value[:, 1] = torch.rand(512, generator=generator)
    low, high = value.amin(0), value.amax(0)
    metric = torch.eye(2)
    lower, upper = learn_clips(value, low, high, metric, 255)
    assert upper[1] > 0.9
    assert (upper <= high + 1e-6).all() and (lower >= low - 1e-6).all()
    before, after = (
        output_error(value, round_between(value, *ends, 255), metric) for ends in ((low, high), (lower, upper))
    )
    assert after <= before


def test_rounding_between_hits_both_ends_and_errs_by_half_a_step() -> None:
    value = torch.linspace(-3, 5, 101).reshape(-1, 1)
    rounded = round_between(value, torch.tensor([-1.0]), torch.tensor([3.0]), 63)
    assert rounded.min() == -1 and rounded.max() == 3
    inside = (value >= -1) & (value <= 3)
    assert ((rounded - value)[inside].abs() <= 4 / 63 / 2 + 1e-6).all()

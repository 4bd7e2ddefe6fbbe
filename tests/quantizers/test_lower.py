from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from edgekit.errors import SourceError
from edgekit.model import Model
from edgekit.quantization import ActivationGrid
from edgekit.quantizers.dynamic import DynamicInt8
from edgekit.quantizers.lower import saturates, to_pt2e
from edgekit.quantizers.schemes import ONNX_X86, TENSORRT, XNNPACK
from edgekit.quantizers.sensitivity import simulate
from edgekit.quantizers.static import StaticInt8
from edgekit.quantizers.weight_only import WeightOnlyInt4
from edgekit.report.metrics import sqnr_db


def operators(graph: torch.fx.GraphModule) -> Counter[str]:
    return Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")


def run(graph: torch.fx.GraphModule, model: Model) -> np.ndarray:
    with torch.no_grad():
        results = [graph(*sample.values()) for sample in model.held_out]
    return torch.cat([r[0] if isinstance(r, (tuple, list)) else r for r in results]).numpy()


def test_clamps_vanish_where_the_quantizer_saturates_alike(convnet: Model) -> None:
    found = operators(to_pt2e(StaticInt8(ONNX_X86, learned_rounding=False)(convnet)))
    assert not any("hardtanh" in name or "relu" in name for name in found)


def test_symmetric_schemes_keep_a_plain_relu(convnet: Model) -> None:
    found = operators(to_pt2e(StaticInt8(TENSORRT, learned_rounding=False)(convnet)))
    assert found["aten.relu.default"] == 3
    assert not any("hardtanh" in name for name in found)


@pytest.mark.parametrize(("high", "expected"), [(6.0, (True, True)), (5.0, (True, True)), (7.0, (True, False))])
def test_saturation_replaces_a_clip_only_within_its_bounds(high: float, expected: tuple[bool, bool]) -> None:
    grid = ActivationGrid(high / 255, 0, "uint8", 0, 255)
    assert saturates(grid, (0.0, 6.0)) == expected


def test_lowered_graph_gives_what_the_simulation_gives(convnet: Model) -> None:
    quantized = StaticInt8(XNNPACK, learned_rounding=False)(convnet)
    simulated = np.stack(simulate(quantized, convnet.held_out))
    assert sqnr_db(simulated, run(to_pt2e(quantized), convnet)) > 60


def test_lowering_leaves_the_model_as_it_was(convnet: Model) -> None:
    quantized = StaticInt8(XNNPACK, learned_rounding=False)(convnet)
    before = quantized.graph.code
    to_pt2e(quantized)
    assert quantized.graph.code == before


def test_weights_are_stored_as_int8(convnet: Model) -> None:
    graph = to_pt2e(StaticInt8(ONNX_X86, learned_rounding=False)(convnet))
    stored = [value for name, value in graph.named_buffers() if name.endswith("_int8")]
    assert len(stored) == 5
    assert all(value.dtype == torch.int8 for value in stored)


def test_padding_stays_between_dequantize_and_convolution(convnet: Model) -> None:
    graph = to_pt2e(StaticInt8(XNNPACK, learned_rounding=False)(convnet))
    pads = [
        node for node in graph.graph.nodes if str(node.target) in ("aten.pad.default", "aten.constant_pad_nd.default")
    ]
    assert pads
    for pad in pads:
        assert "dequantize" in str(pad.args[0].target)
        assert all("conv" in str(user.target) for user in pad.users)


def test_dynamic_form_chooses_its_grid_at_run_time(transformer: Model) -> None:
    found = operators(to_pt2e(DynamicInt8(XNNPACK)(transformer)))
    assert found["quantized_decomposed.choose_qparams.tensor"] == 4
    assert found["quantized_decomposed.dequantize_per_channel.default"] == 4


def test_four_bit_weights_are_lowered_by_group(transformer: Model) -> None:
    quantized = WeightOnlyInt4(XNNPACK)(transformer)
    graph = to_pt2e(quantized)
    assert operators(graph)["quantized_decomposed.dequantize_per_channel_group.default"] == 4
    wanted = np.concatenate([quantized.forward(sample)["y"].numpy() for sample in transformer.held_out])
    np.testing.assert_allclose(run(graph, transformer), wanted, atol=1e-5)


def test_a_float_model_cannot_be_lowered(convnet: Model) -> None:
    with pytest.raises(SourceError, match="no integer weights"):
        to_pt2e(convnet)


def test_onnx_export_matches_the_lowered_graph(convnet: Model, tmp_path) -> None:  # type: ignore[no-untyped-def]
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = to_pt2e(StaticInt8(ONNX_X86, learned_rounding=False)(convnet))
    path = tmp_path / "net.onnx"
    torch.onnx.export(graph, convnet.args, path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    got = np.concatenate([session.run(None, {name: sample["x"].numpy()})[0] for sample in convnet.held_out])
    # Ties of rounding may fall to either side: a step of the coarsest grid is 1/255 of its range, 48 dB.
    assert sqnr_db(run(graph, convnet), got) > 40

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekit.exporters.onnx_sensitivity import node_sensitivities
from edgekit.exporters.onnx_source import load_onnx_model, quantize_onnx
from edgekit.model import Model
from edgekit.pipeline import export_recipe
from edgekit.quantization import Fallback
from edgekit.quantizers.schemes import scheme_named
from edgekit.recipe import Recipe

OUTLIER = 3000.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Three products; the first reads one value OUTLIER times as large as the others, and takes it back."""
    generator = np.random.default_rng(0)
    first, second, third = (
        generator.standard_normal(shape).astype(np.float32) for shape in ((6, 16), (16, 16), (16, 9))
    )
    first[0] /= OUTLIER
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["a"], name="one"),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("MatMul", ["b", "second"], ["c"], name="two"),
            helper.make_node("MatMul", ["c", "third"], ["y"], name="three"),
        ],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 9])],
        [
            numpy_helper.from_array(value, name)
            for name, value in zip(("first", "second", "third"), (first, second, third), strict=True)
        ],
    )
    path = tmp_path_factory.mktemp("source") / "products.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    draw = torch.Generator().manual_seed(1)
    size = torch.tensor([OUTLIER, 1, 1, 1, 1, 1])
    data = tuple({"x": torch.randn(1, 6, generator=draw) * size} for _ in range(48))
    return replace(load_onnx_model(path), calibration=data[:32], held_out=data[32:])


def test_the_layer_that_reads_the_outlier_stands_far_below_the_others(model: Model) -> None:
    rows = {
        row.layer: row.sqnr_db
        for row in node_sensitivities(quantize_onnx(model, "int8", scheme_named("onnx-x86")), "onnx")
    }
    assert set(rows) == {"one", "two", "three"}
    # An 8-bit grid of ordinary values leaves some 40 dB; one 3,000 times too wide leaves nothing of the others.
    assert rows["one"] < 15 < 30 < min(rows["two"], rows["three"])


def test_layers_that_already_stay_in_float_are_not_measured(model: Model) -> None:
    quantized = quantize_onnx(model, "int8", scheme_named("onnx-x86"))
    assert quantized.quantization is not None
    kept = replace(quantized.quantization, fallbacks=(Fallback("one", "float32", "sensitive"),))
    assert [row.layer for row in node_sensitivities(replace(quantized, quantization=kept), "onnx")] == ["two", "three"]


def test_an_export_keeps_that_node_in_float_and_says_so(model: Model, tmp_path: Path) -> None:
    recipe = Recipe(
        source="products",
        device="x86-server",
        format="onnx",
        quantize="int8",
        min_sqnr=25.0,
        output=str(tmp_path / "p.edgekit"),
    )
    result = export_recipe(recipe, module=model)  # type: ignore[arg-type]
    (line,) = result.summary["fallbacks"]
    assert line["layer"] == "one"
    assert "alone it limits the output" in line["why"]
    assert result.summary["quality"]["sqnr_db"] >= 25.0

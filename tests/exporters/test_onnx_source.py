from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from edgekit.devices.device import load_device
from edgekit.errors import DataError, ExportError, SourceError
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.exporters.onnx_source import load_onnx_model, quantize_onnx
from edgekit.exporters.tensorrt_exporter import TensorrtExporter
from edgekit.model import Model
from edgekit.quantization import Fallback
from edgekit.quantizers.schemes import scheme_named

SERVER = load_device("x86-server")


def _sample(seed: int, batch: int = 1) -> dict[str, Tensor]:
    return {"image": torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conv, relu, mean over the picture, linear; a dynamic batch."""
    generator = np.random.default_rng(0)
    constants = {
        "w": generator.standard_normal((8, 3, 3, 3)).astype(np.float32) / 5,
        "b": generator.standard_normal(8).astype(np.float32) / 5,
        "v": generator.standard_normal((8, 4)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
            helper.make_node("MatMul", ["f", "v"], ["scores"], name="matmul"),
        ],
        "hand made",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    file = tmp_path_factory.mktemp("source") / "trained.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(file))
    return file


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return replace(load_onnx_model(path), calibration=tuple(_sample(seed) for seed in range(8)))


def test_a_file_becomes_a_model_with_its_names_dimensions_and_digest(model: Model, path: Path) -> None:
    assert model.dynamic == {"image": {0: "batch"}}
    assert [spec.shape for spec in (*model.input_specs, *model.output_specs)] == [("batch", 3, 8, 8), ("batch", 4)]
    assert model.source.kind == "onnx" and len(model.source.digest) == 64
    assert model.onnx_path == path


def test_forward_gives_the_files_own_outputs_and_survives_a_copy(model: Model) -> None:
    sample = _sample(3, batch=2)
    want = model.forward(sample)["scores"]
    assert want.shape == (2, 4)
    copied = replace(model, module=copy.deepcopy(model.module))
    torch.testing.assert_close(copied.forward(sample)["scores"], want, rtol=0, atol=0)


def _error(model: Model, artifact_model: Model, exporter: OnnxExporter | TensorrtExporter, folder: Path) -> float:
    """Largest difference over the largest output, on a sample that calibration did not see."""
    artifact = exporter.export(artifact_model, folder, SERVER)
    sample = _sample(99)
    want = model.forward(sample)["scores"].numpy()
    with artifact.open(model) as session:
        got = session.run({name: value.numpy() for name, value in sample.items()})["scores"]
    return float(np.abs(got - want).max() / np.abs(want).max())


def test_float_is_packed_as_it_is(model: Model, tmp_path: Path) -> None:
    assert _error(model, model, OnnxExporter(), tmp_path) == 0.0
    assert [file.name for file in tmp_path.iterdir()] == ["trained-fp32.onnx"]


@pytest.mark.parametrize(
    ("method", "tolerance"),
    # Two quantized layers, input and output grids of 8 bits each, clipped ranges; half: ulp 2^-11 a layer.
    [("int8", 8 / 255), ("int8-dynamic", 8 / 255), ("fp16", 8 * 2**-11)],
)
def test_quantized_graphs_stay_close_and_the_same(method: str, tolerance: float, model: Model, tmp_path: Path) -> None:
    quantized = quantize_onnx(model, method, scheme_named("onnx-x86"))
    assert _error(model, quantized, OnnxExporter(), tmp_path / "a") <= tolerance
    assert _error(model, quantized, OnnxExporter(), tmp_path / "b") <= tolerance
    files = [tmp_path / name / f"trained-{method}.onnx" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_static_int8_follows_the_scheme(model: Model, tmp_path: Path) -> None:
    for name, kind in (("onnx-x86", TensorProto.UINT8), ("onnx-arm", TensorProto.INT8)):
        artifact = OnnxExporter().export(quantize_onnx(model, "int8", scheme_named(name)), tmp_path / name, SERVER)
        graph = onnx.load(str(artifact.path)).graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        assert {types[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"} == {kind}


@pytest.mark.parametrize("method", [None, "int8", "fp16"])
def test_tensorrt_takes_the_file_within_its_rules(method: str | None, model: Model, tmp_path: Path) -> None:
    exporter = TensorrtExporter(largest=(("batch", 4),))
    quantized = model if method is None else quantize_onnx(model, method, scheme_named("tensorrt"))
    assert _error(model, quantized, exporter, tmp_path) <= 8 / 127


def test_methods_that_need_a_torch_module_say_so(model: Model) -> None:
    with pytest.raises(ExportError, match="int4-weight-only needs the torch module"):
        quantize_onnx(model, "int4-weight-only", scheme_named("onnx-x86"))


def test_static_int8_without_calibration_data_is_refused(path: Path) -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        quantize_onnx(load_onnx_model(path), "int8", scheme_named("onnx-x86"))


def test_a_graph_without_a_layer_to_quantize_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "r.onnx")
    model = quantize_onnx(load_onnx_model(tmp_path / "r.onnx"), "int8-dynamic", scheme_named("onnx-x86"))
    with pytest.raises(ExportError, match=r"r\.onnx has no layer that int8-dynamic can change"):
        OnnxExporter().export(model, tmp_path / "out", SERVER)


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_file_that_is_no_model_is_a_source_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(SourceError, match=r"bad\.onnx"):
        load_onnx_model(tmp_path / "bad.onnx")


def test_a_missing_file_and_wrong_example_inputs_are_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no file at"):
        load_onnx_model(tmp_path / "none.onnx")
    with pytest.raises(SourceError, match=r"example inputs \['pixels'\], allowed \['image'\]"):
        load_onnx_model(path, {"pixels": torch.zeros(1, 3, 8, 8)})
    with pytest.raises(SourceError, match="does not run on its example inputs"):
        load_onnx_model(path, {"image": torch.zeros(1, 4, 8, 8)})


def test_silero_vad_in_int8_hears_what_it_heard_once_its_sensitive_layer_stays_float(tmp_path: Path) -> None:
    """The last encoder layer drives the recurrent state: rounding it alone flips the decision on these tones."""
    found = importlib.util.find_spec("silero_vad")
    if found is None or found.origin is None:
        pytest.skip("silero-vad is not installed (extra: samples)")
    file = Path(found.origin).parent / "data" / "silero_vad_half.onnx"
    time = torch.arange(576) / 16000
    samples = [
        {"input": (torch.sin(2 * torch.pi * pitch * time) * 0.3)[None], "state": torch.zeros(2, 1, 128)}
        for pitch in (110, 220, 330, 440)
    ]
    model = replace(load_onnx_model(file, samples[0]), calibration=tuple(samples))
    want = [model.forward(sample)["output"].item() for sample in samples]
    quantized = quantize_onnx(model, "int8", scheme_named("onnx-x86"))
    assert quantized.quantization is not None
    errors, counts = [], []
    for keep in ((), ("/encoder/3/reparam_conv/Conv", "/stft/Conv")):
        fallbacks = tuple(Fallback(layer, "float32", "sensitive") for layer in keep)
        kept = replace(quantized, quantization=replace(quantized.quantization, fallbacks=fallbacks))
        artifact = OnnxExporter().export(kept, tmp_path / str(len(keep)), SERVER)
        with artifact.open(model) as session:
            got = [
                session.run({name: value.numpy() for name, value in sample.items()})["output"].item()
                for sample in samples
            ]
        errors.append(max(abs(a - b) for a, b in zip(got, want, strict=True)))
        counts.append(artifact.size_bytes)
    assert [value > 0.5 for value in got] == [value > 0.5 for value in want]
    assert errors[1] < errors[0] / 2
    assert counts[1] > counts[0], "the float layers weigh more"

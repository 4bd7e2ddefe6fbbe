from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgekit.devices.device import Device, load_device
from edgekit.errors import ExportError, UnsupportedOperatorError
from edgekit.exporters.base import Artifact
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.quantization import Quantization, WeightGrid
from edgekit.quantizers.lower import to_pt2e
from edgekit.quantizers.schemes import scheme_named
from edgekit.quantizers.static import StaticInt8
from edgekit.report.metrics import sqnr_db

EXPORTER = OnnxExporter()
# Two summation orders of float32 dot products up to a few hundred long, through a handful of layers.
FLOAT_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def server() -> Device:
    return load_device("x86-server")


@pytest.fixture(scope="module")
def quantized(convolutional: Model, server: Device) -> Model:
    return StaticInt8(EXPORTER.scheme(server), learned_rounding=False, bias_correction=False)(convolutional)


@pytest.fixture(scope="module")
def int8(quantized: Model, server: Device, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return EXPORTER.export(quantized, tmp_path_factory.mktemp("int8"), server)


def _run(artifact: Artifact, model: Model, sample: dict[str, Tensor]) -> dict[str, np.ndarray]:
    with artifact.open(model) as session:
        return session.run({name: value.numpy() for name, value in sample.items()})


def _operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def _assert_parity(artifact: Artifact, model: Model, sample: dict[str, Tensor], tolerance: float) -> None:
    want = model.forward(sample)
    got = _run(artifact, model, sample)
    assert list(got) == list(want)
    for name, value in want.items():
        scale = max(1.0, value.abs().max().item())
        np.testing.assert_allclose(got[name], value.numpy(), atol=tolerance * scale, rtol=0)


def test_float_convolutions_agree_with_torch_and_fold_their_batch_norms(
    convolutional: Model, server: Device, tmp_path: Path
) -> None:
    artifact = EXPORTER.export(convolutional, tmp_path, server)
    assert artifact.path == tmp_path / "convolutional-fp32.onnx"
    _assert_parity(artifact, convolutional, convolutional.calibration[1], FLOAT_TOLERANCE)
    operators = _operators(artifact.path)
    assert "BatchNormalization" not in operators
    assert "GlobalAveragePool" in operators and "ReduceMean" not in operators


def test_float_transformer_agrees_with_torch(transformer: Model, server: Device, tmp_path: Path) -> None:
    artifact = EXPORTER.export(transformer, tmp_path, server)
    _assert_parity(artifact, transformer, transformer.calibration[1], FLOAT_TOLERANCE)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        states, (last, _) = self.lstm(self.table(tokens))
        return self.head(states), last


@pytest.fixture(scope="module")
def recurrent() -> Model:
    torch.manual_seed(0)
    tokens = torch.randint(0, 50, (1, 7), generator=torch.Generator().manual_seed(0))
    return Capture()(Model("recurrent", Recurrent().eval(), {"tokens": tokens}, output_names=("scores", "last")))


def test_lstm_and_embedding_agree_with_torch(recurrent: Model, server: Device, tmp_path: Path) -> None:
    artifact = EXPORTER.export(recurrent, tmp_path, server)
    _assert_parity(artifact, recurrent, recurrent.example_inputs, FLOAT_TOLERANCE)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_dynamic_batch_keeps_its_name_and_runs_at_any_size(
    batch: int, captured: Callable[..., Model], server: Device, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 15 * 15, 10))
    model = captured("dynamic", net, image={0: "batch"})
    artifact = EXPORTER.export(model, tmp_path, server)
    graph = onnx.load(str(artifact.path)).graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    sample = {"image": torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))}
    _assert_parity(artifact, model, sample, FLOAT_TOLERANCE)


def test_static_int8_agrees_with_the_quantized_torch_graph(
    convolutional: Model, quantized: Model, int8: Artifact
) -> None:
    """Integer kernels requantize with one rounding where torch rounds a float: each grid may differ by one step."""
    assert quantized.quantization is not None
    sample = convolutional.calibration[2]
    graph = to_pt2e(quantized)
    with torch.no_grad():
        want = graph(*sample.values())[0].numpy()
    got = _run(int8, quantized, sample)["logits"]
    steps = max(grid.scale for grid in quantized.quantization.activations.values())
    gain = float(dict(quantized.module.named_parameters())["head.weight"].abs().sum(1).max())
    assert np.abs(got - want).max() <= steps * gain
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_static_int8_is_fused_to_integer_kernels(int8: Artifact, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(int8.path), options, providers=["CPUExecutionProvider"])
    operators = _operators(tmp_path / "optimized.onnx")
    assert operators.count("QLinearConv") == 3 and "QGemm" in operators
    assert not {"Conv", "Gemm", "Clip", "Relu", "DequantizeLinear"} & set(operators)
    assert operators.count("QuantizeLinear") == 1, "the input alone is quantized in float"


def test_static_int8_on_x86_takes_unsigned_activations(int8: Artifact) -> None:
    graph = onnx.load(str(int8.path)).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    points = {types[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert points == {onnx.TensorProto.UINT8}


@pytest.mark.parametrize(
    ("device", "scheme"), [("x86-server", "onnx-x86"), ("raspberry-pi-5", "onnx-arm"), ("raspberry-pi-4", "onnx-arm")]
)
def test_the_scheme_follows_the_processor(device: str, scheme: str) -> None:
    assert EXPORTER.scheme(load_device(device)).name == scheme


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_same_model_gives_the_same_bytes_without_traces_of_the_machine(
    precision: str, convolutional: Model, quantized: Model, server: Device, tmp_path: Path
) -> None:
    model = quantized if precision == "int8" else convolutional
    first, second = (EXPORTER.export(model, tmp_path / name, server).path.read_bytes() for name in "ab")
    assert first == second
    assert b"site-packages" not in first and str(Path.cwd()).encode() not in first
    proto = onnx.load_from_string(first)
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert proto.producer_name == "edgekit"


def _record(model: Model, method: str, bits: int = 8, group: int | None = None) -> Model:
    """`model` with its matrices rounded onto grids found by their largest magnitude."""
    grids, limit = {}, 2 ** (bits - 1) - 1
    rounded = model.copy_graph()
    for name, weight in rounded.named_parameters():
        if weight.dim() != 2 or not name.endswith("weight"):
            continue
        parts = weight.detach().reshape(weight.shape[0], -1, group) if group else weight.detach()
        scale = parts.abs().amax(-1) / limit
        wide = scale.repeat_interleave(group, 1) if group else scale[:, None]
        with torch.no_grad():
            weight.copy_(torch.round(weight / wide) * wide)
        grids[name] = WeightGrid(scale, torch.zeros_like(scale, dtype=torch.int32), 0, bits, group)
    record = Quantization(method, scheme_named("onnx-x86"), grids, layers=tuple(grids))
    return replace(model, module=rounded, quantization=record)


@pytest.mark.parametrize(
    ("method", "bits", "group"),
    [("int8-weight-only", 8, None), ("int8-weight-only", 8, 16), ("int4-weight-only", 4, 16)],
)
def test_weight_only_gives_what_the_rounded_weights_give(
    method: str, bits: int, group: int | None, transformer: Model, server: Device, tmp_path: Path
) -> None:
    model = _record(transformer, method, bits, group)
    artifact = EXPORTER.export(model, tmp_path, server)
    # MatMulNBits also rounds activations to 8 bits in blocks where that is faster: 1/254 of a block's range each.
    _assert_parity(artifact, model, model.calibration[3], 2 / 254)
    plain = EXPORTER.export(transformer, tmp_path, server)
    assert artifact.size_bytes < plain.size_bytes


@pytest.mark.parametrize("name", ["transformer", "recurrent"])
def test_dynamic_int8_multiplies_integers_on_our_grids(
    name: str, request: pytest.FixtureRequest, server: Device, tmp_path: Path
) -> None:
    model = _record(request.getfixturevalue(name), "int8-dynamic")
    artifact = EXPORTER.export(model, tmp_path, server)
    operators = _operators(artifact.path)
    assert "MatMulInteger" in operators and "DynamicQuantizeLinear" in operators
    initializers = {tensor.name: tensor for tensor in onnx.load(str(artifact.path)).graph.initializer}
    stored = onnx.numpy_helper.to_array(initializers["head.weight_int8"])
    grid = model.quantization.weights["head.weight"]  # type: ignore[union-attr]
    weight = dict(model.module.named_parameters())["head.weight"].detach()
    np.testing.assert_array_equal(stored, torch.round(weight / grid.scale[:, None]).to(torch.int8).numpy().T)
    # One activation step is 1/255 of a tensor's range; the few quantized layers add their errors up.
    _assert_parity(artifact, model, model.example_inputs, 4 / 255)


def test_a_half_graph_is_exported_as_it_is(convolutional: Model, server: Device, tmp_path: Path) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3).half()

        def forward(self, image: Tensor) -> Tensor:
            return self.layer(image.half()).float()

    torch.manual_seed(0)
    model = Capture()(Model("half", Half().eval(), convolutional.example_inputs, output_names=("map",)))
    model = replace(model, quantization=Quantization("fp16", scheme_named("onnx-x86")))
    artifact = EXPORTER.export(model, tmp_path, server)
    weights = [tensor.data_type for tensor in onnx.load(str(artifact.path)).graph.initializer if len(tensor.dims) == 4]
    assert weights == [onnx.TensorProto.FLOAT16]
    # 27 products in half precision: relative ulp 2^-11 each.
    _assert_parity(artifact, model, model.calibration[0] if model.calibration else model.example_inputs, 27 * 2**-11)


def test_a_method_that_the_format_cannot_carry_is_an_error(
    convolutional: Model, server: Device, tmp_path: Path
) -> None:
    odd = replace(convolutional, quantization=Quantization("int2", scheme_named("onnx-x86")))
    with pytest.raises(ExportError, match="onnx cannot carry int2"):
        EXPORTER.export(odd, tmp_path, server)
    assert not list(tmp_path.iterdir())


@torch.library.custom_op("edgekit_tests::mystery", mutates_args=())
def _mystery(value: Tensor) -> Tensor:
    return value + 1


@_mystery.register_fake
def _(value: Tensor) -> Tensor:
    return torch.empty_like(value)


def test_an_operator_without_a_translation_is_named(
    captured: Callable[..., Model], server: Device, tmp_path: Path
) -> None:
    class Odd(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.ops.edgekit_tests.mystery(image)

    with pytest.raises(UnsupportedOperatorError) as caught:
        EXPORTER.export(captured("odd", Odd()), tmp_path, server)
    assert caught.value.operator == "edgekit_tests.mystery"
    assert not list(tmp_path.iterdir())


def test_uneven_padding_becomes_part_of_the_convolution(tmp_path: Path) -> None:
    """TensorFlow's "same" padding at stride 2: one row below and one column to the right."""

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.conv(nn.functional.pad(image, (0, 1, 0, 1))))

    torch.manual_seed(0)
    data = tuple({"image": torch.rand(1, 3, 16, 16)} for _ in range(8))
    model = Capture()(Model("same", Same(), data[0], calibration=data))
    device = load_device("x86-server")
    quantized = StaticInt8(OnnxExporter().scheme(device))(model)
    for made in (model, quantized):
        artifact = OnnxExporter().export(made, tmp_path, device)
        assert "Pad" not in {node.op_type for node in onnx.load(str(artifact.path)).graph.node}
        with artifact.open(made) as session:
            got = session.run({"image": data[0]["image"].numpy()})["output"]
        assert sqnr_db(model.forward(data[0])["output"].numpy(), got) > (100 if made is model else 25)

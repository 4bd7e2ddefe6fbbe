from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.devices.device import Device, load_device
from edgekit.errors import EdgekitError, ExportError, UnsupportedOperatorError
from edgekit.exporters.base import Artifact
from edgekit.exporters.litert_exporter import LitertExporter
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.passes.layout import TakeChannelsLast
from edgekit.quantizers.dynamic import DynamicInt8
from edgekit.quantizers.half import Fp16
from edgekit.quantizers.lower import to_pt2e
from edgekit.quantizers.schemes import LITERT
from edgekit.quantizers.static import StaticInt8
from edgekit.report.metrics import sqnr_db

# float32 kernels that sum in another order keep more than 20 of 24 bits
FLOAT_SQNR_DB = 100.0


@pytest.fixture(scope="module")
def device() -> Device:
    return load_device("raspberry-pi-5")


@pytest.fixture(scope="module")
def quantized(convolutional: Model) -> Model:
    return StaticInt8(LITERT, learned_rounding=False, bias_correction=False)(convolutional)


@pytest.fixture(scope="module")
def integers(quantized: Model, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return LitertExporter().export(quantized, tmp_path_factory.mktemp("integers"), device)


def outputs(artifact, model: Model, samples) -> np.ndarray:
    with artifact.open(model) as session:
        runs = [session.run({name: value.numpy() for name, value in sample.items()}) for sample in samples]
    return np.concatenate([run[model.output_names[0]] for run in runs])


def reference(model: Model, samples) -> np.ndarray:
    return np.concatenate([model.forward(sample)[model.output_names[0]].numpy() for sample in samples])


@pytest.mark.parametrize("network", ["convolutional", "transformer"])
def test_float_agrees_with_torch(network: str, device: Device, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(network)
    artifact = LitertExporter().export(model, tmp_path, device)
    assert artifact.path == tmp_path / f"{network}-fp32.tflite"
    samples = model.calibration
    assert sqnr_db(reference(model, samples), outputs(artifact, model, samples)) > FLOAT_SQNR_DB


def test_int8_runs_wholly_on_integers_with_our_scales(quantized: Model, integers: Artifact) -> None:
    artifact = integers
    total = artifact.notes[0].split()[2]
    assert artifact.notes == (f"{total} of {total} operators run on integers",)
    simulated = to_pt2e(quantized)
    with torch.no_grad():
        wanted = np.concatenate([simulated(*sample.values())[0].numpy() for sample in quantized.calibration])
    got = outputs(artifact, quantized, quantized.calibration)
    # the integer kernels round halves otherwise than torch: one step of the output grid, rarely two
    step = list(quantized.quantization.activations.values())[-1].scale  # type: ignore[union-attr]
    assert np.abs(got - wanted).max() <= 2 * step * (1 + 1e-5)
    assert np.abs(got - wanted).mean() <= step / 2


def test_the_interface_of_an_integer_file_stays_float(integers: Artifact) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(integers.path))
    details = [*interpreter.get_input_details(), *interpreter.get_output_details()]
    assert [detail["dtype"] for detail in details] == [np.float32, np.float32]


def test_the_same_model_gives_the_same_bytes(
    quantized: Model, integers: Artifact, device: Device, tmp_path: Path
) -> None:
    again = LitertExporter().export(quantized, tmp_path, device)
    assert again.path.read_bytes() == integers.path.read_bytes()


def test_a_layer_kept_in_float_is_named_in_the_notes(convolutional: Model, device: Device, tmp_path: Path) -> None:
    names = [node.name for node in convolutional.graph.graph.nodes if "conv2d" in node.name]
    quantizer = StaticInt8(LITERT, keep=((names[1], "test"),), learned_rounding=False, bias_correction=False)
    artifact = LitertExporter().export(quantizer(convolutional), tmp_path, device)
    assert "DEPTHWISE_CONV_2D x1" in artifact.notes[1]


def test_channels_last_takes_nhwc_without_a_transpose(convolutional: Model, device: Device, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    from edgekit.exporters.litert_flatbuffer import operators

    path = LitertExporter().export(TakeChannelsLast()(convolutional), tmp_path, device).path
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    image = convolutional.calibration[1]["image"]
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image.permute(0, 2, 3, 1).numpy())
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert sqnr_db(reference(convolutional, [{"image": image}]), got) > FLOAT_SQNR_DB
    assert operators(path.read_bytes())[0][0] != "TRANSPOSE"


def test_a_dynamic_batch_stays_dynamic(device: Device, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    model = Capture()(Model("batch", module, {"x": torch.rand(1, 4)}, dynamic={"x": {0: "batch"}}))
    artifact = LitertExporter().export(model, tmp_path, device)
    with artifact.open(model) as session:
        for size in (1, 5, 2):
            sample = {"x": torch.rand(size, 4)}
            got = session.run({"x": sample["x"].numpy()})[model.output_names[0]]
            assert sqnr_db(reference(model, [sample]), got) > FLOAT_SQNR_DB


class SplitByBatch(nn.Module):
    """A view to a size that is read off the input: litert-torch cannot lower it, and no file resizes over it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).reshape(-1, 4) + x.shape[0]


def test_a_batch_that_the_converter_cannot_leave_open_is_fixed(device: Device, tmp_path: Path) -> None:
    example = {"x": torch.rand(1, 6, 8)}
    model = Capture()(Model("split", SplitByBatch().eval(), example, dynamic={"x": {0: "batch"}}))
    artifact = LitertExporter().export(model, tmp_path, device)
    assert artifact.fixed
    assert artifact.notes[0].startswith("fixed batch of 1: ")
    inputs, results = artifact.interface(model)
    assert [spec.shape for spec in (*inputs, *results)] == [(1, 6, 8), (3, 4)]
    assert model.input_specs[0].shape == ("batch", 6, 8)
    assert sqnr_db(reference(model, [example]), outputs(artifact, model, [example])) > FLOAT_SQNR_DB
    with artifact.open(model) as session, pytest.raises(EdgekitError, match=r"\[2, 6, 8\]"):
        session.run({"x": np.zeros((2, 6, 8), np.float32)})


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        with torch.no_grad():  # rows of unlike sizes, off centre: one scale would lose the small ones
            self.table.weight.mul_(torch.logspace(-2, 0, 64)[:, None]).add_(self.table.weight.abs())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(self.table(tokens)).mean(1)


def test_embedding_tables_of_a_dynamic_int8_file_have_a_scale_a_row(device: Device, tmp_path: Path) -> None:
    torch.manual_seed(0)
    samples = tuple({"tokens": torch.randint(0, 64, (1, 12))} for _ in range(4))
    model = Capture()(Model("text", Text().eval(), samples[0], calibration=samples))
    dynamic = DynamicInt8(LITERT, learned_rounding=False)(model)
    artifact = LitertExporter().export(dynamic, tmp_path, device)
    assert artifact.notes == ("embedding tables in 8 bits, a scale a row: 1",)
    # 8 bits over the range of a row of 32 values: some 40 dB, and two dynamic layers as good
    assert sqnr_db(reference(model, samples), outputs(artifact, model, samples)) > 30.0


def test_a_constant_row_on_the_left_of_a_product_stays_float_between_dynamic_layers(
    device: Device, tmp_path: Path
) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(32, 32), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.softmax(self.before(x), 1)
            return self.after(torch.arange(300.0, 300.0 + x.shape[1]).reshape(1, 1, -1) @ tokens)

    torch.manual_seed(0)
    samples = tuple({"x": torch.randn(1, 40, 32)} for _ in range(4))
    model = Capture()(Model("counting", Counting().eval(), samples[0], calibration=samples))
    dynamic = DynamicInt8(LITERT, learned_rounding=False)(model)
    artifact = LitertExporter().export(dynamic, tmp_path, device)
    assert sqnr_db(reference(model, samples), outputs(artifact, model, samples)) > 30.0


def test_half_precision_is_stored_and_computed_with_in_single(
    convolutional: Model, device: Device, tmp_path: Path
) -> None:
    half = Fp16(LITERT)(convolutional)
    artifact = LitertExporter().export(half, tmp_path, device)
    assert artifact.notes[0].endswith("weights are stored in half precision and computed with in single")
    # weights of 11 significant bits
    samples = convolutional.calibration
    assert sqnr_db(reference(convolutional, samples), outputs(artifact, convolutional, samples)) > 55.0


def test_an_operator_without_a_lowering_is_named(device: Device, tmp_path: Path) -> None:
    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    model = Capture()(Model("special", Special(), {"x": torch.rand(3)}))
    with pytest.raises(UnsupportedOperatorError, match="bessel_j0"):
        LitertExporter().export(model, tmp_path, device)
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_the_format_lacks_is_refused(quantized: Model, device: Device, tmp_path: Path) -> None:
    record = quantized.quantization
    assert record is not None
    other = replace(quantized, quantization=replace(record, method="int4-weight-only"))
    with pytest.raises(ExportError, match="int4-weight-only"):
        LitertExporter().export(other, tmp_path, device)


def test_nothing_is_printed(
    convolutional: Model, device: Device, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    LitertExporter().export(convolutional, tmp_path, device)
    assert capfd.readouterr().out == ""

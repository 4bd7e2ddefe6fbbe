from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.devices.device import Device, load_device
from edgekit.errors import UnsupportedOperatorError
from edgekit.exporters.executorch_exporter import ExecutorchExporter
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.quantization import Quantization, WeightGrid
from edgekit.quantizers.anatomy import layer_weight, replace_tensor, weighted_layers
from edgekit.quantizers.grids import on_grid, weight_grid
from edgekit.quantizers.lower import to_pt2e
from edgekit.quantizers.schemes import XNNPACK
from edgekit.quantizers.static import StaticInt8
from edgekit.report.metrics import sqnr_db

# float32 kernels that sum in another order keep more than 20 of 24 bits
FLOAT_SQNR_DB = 100.0


@pytest.fixture(scope="module")
def device() -> Device:
    return load_device("raspberry-pi-5")


class Feedforward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.down(torch.relu(self.up(tokens)))


@pytest.fixture(scope="module")
def feedforward() -> Model:
    return Capture()(Model("feedforward", Feedforward().eval(), {"tokens": torch.randn(1, 8, 64)}))


def with_weights_on_grids(model: Model, method: str) -> Model:
    """Round-to-nearest, per channel in 8 bits or in groups of 32 in 4 bits."""
    graph = model.copy_graph()
    grids = {}
    layers = weighted_layers(graph)
    for layer in layers:
        weight = layer_weight(graph, layer)
        if method == "int4-weight-only":
            scale = weight.detach().reshape(len(weight), -1, 32).abs().amax(-1) / 7
            grid = WeightGrid(scale, torch.zeros_like(scale, dtype=torch.int64), 0, bits=4, group_size=32)
        else:
            grid = weight_grid(weight, layer.axis, XNNPACK)
        grids[layer.weight] = grid
        replace_tensor(graph, layer.weight, on_grid(weight, grid))
    record = Quantization(method, XNNPACK, grids, {}, tuple(layer.node.name for layer in layers))
    return replace(model, module=graph, quantization=record)


def outputs(artifact, model: Model, samples) -> np.ndarray:
    with artifact.open(model) as session:
        runs = [session.run({name: value.numpy() for name, value in sample.items()}) for sample in samples]
    return np.concatenate([run[model.output_names[0]] for run in runs])


def reference(model: Model, samples) -> np.ndarray:
    return np.concatenate([model.forward(sample)[model.output_names[0]].numpy() for sample in samples])


@pytest.mark.parametrize("network", ["convolutional", "transformer"])
def test_float_agrees_with_torch(network: str, device: Device, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(network)
    artifact = ExecutorchExporter().export(model, tmp_path, device)
    assert artifact.path == tmp_path / f"{network}-fp32.pte"
    assert sqnr_db(reference(model, model.calibration), outputs(artifact, model, model.calibration)) > FLOAT_SQNR_DB


def test_int8_is_delegated_whole_and_agrees_with_the_simulation(
    convolutional: Model, device: Device, tmp_path: Path
) -> None:
    quantized = StaticInt8(XNNPACK, learned_rounding=False, bias_correction=False)(convolutional)
    artifact = ExecutorchExporter().export(quantized, tmp_path, device)
    assert len(artifact.notes) == 1, artifact.notes
    simulated = to_pt2e(quantized)
    with torch.no_grad():
        wanted = np.concatenate([simulated(*sample.values())[0].numpy() for sample in quantized.calibration])
    got = outputs(artifact, quantized, quantized.calibration)
    # the integer kernels round halves otherwise than torch: one step of the output grid, rarely two
    step = list(quantized.quantization.activations.values())[-1].scale  # type: ignore[union-attr]
    assert np.abs(got - wanted).max() <= 2 * step * (1 + 1e-5)
    assert np.abs(got - wanted).mean() <= step / 2


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        ("int8-dynamic", 8),
        ("int4-weight-only", 4),
    ],
)
def test_products_scale_their_input_at_run_time(
    feedforward: Model, device: Device, tmp_path: Path, method: str, bits: int
) -> None:
    quantized = with_weights_on_grids(feedforward, method)
    artifact = ExecutorchExporter().export(quantized, tmp_path, device)
    assert len(artifact.notes) == 1, artifact.notes
    weights = 2 * 64 * 128 * bits // 8
    assert weights < artifact.size_bytes < ExecutorchExporter().export(feedforward, tmp_path, device).size_bytes / 2
    # weights are exact; activations carry 8 bits, 6 dB each, less what their peaks above the mean cost (about 14 dB)
    assert (
        sqnr_db(
            reference(quantized, [feedforward.example_inputs]),
            outputs(artifact, quantized, [feedforward.example_inputs]),
        )
        > 6 * 8 - 14
    )


def test_the_same_model_gives_the_same_bytes(convolutional: Model, device: Device, tmp_path: Path) -> None:
    first = ExecutorchExporter().export(convolutional, tmp_path, device).path.read_bytes()
    assert ExecutorchExporter().export(convolutional, tmp_path, device).path.read_bytes() == first


def test_notes_name_what_is_left_to_portable_kernels(transformer: Model, device: Device, tmp_path: Path) -> None:
    notes = ExecutorchExporter().export(transformer, tmp_path, device).notes
    assert "aten.native_layer_norm.default x2" in notes[1]
    assert "scaled_dot_product" not in notes[1]


def test_a_dynamic_dimension_is_planned_up_to_its_limit(device: Device, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    model = Capture()(Model("batch", module, {"x": torch.rand(1, 4)}, dynamic={"x": {0: "batch"}}))
    artifact = ExecutorchExporter(limits=(("batch", 6),)).export(model, tmp_path, device)
    assert "memory is planned for batch up to 6" in artifact.notes
    with artifact.open(model) as session:
        for size in (1, 6, 2):
            sample = {"x": torch.rand(size, 4)}
            got = session.run({"x": sample["x"].numpy()})[model.output_names[0]]
            assert sqnr_db(reference(model, [sample]), got) > FLOAT_SQNR_DB


def test_an_operator_without_a_kernel_is_named(device: Device, tmp_path: Path) -> None:
    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    model = Capture()(Model("special", Special(), {"x": torch.rand(3)}))
    with pytest.raises(UnsupportedOperatorError, match="bessel_j0"):
        ExecutorchExporter().export(model, tmp_path, device)
    assert list(tmp_path.iterdir()) == []

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.devices.device import Device, load_device
from edgekit.errors import DeviceError, ExportError
from edgekit.exporters.inductor_exporter import InductorExporter
from edgekit.model import Model
from edgekit.passes.capture import Capture
from edgekit.quantization import Quantization
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.report.metrics import sqnr_db


@pytest.fixture(scope="module")
def server() -> Device:
    return load_device("x86-server")


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    return Capture()(Model("tiny", module, {"x": torch.rand(3, 4)}, dynamic={"x": {0: "batch"}}))


def test_the_package_agrees_with_torch_at_any_batch_size(model: Model, server: Device, tmp_path: Path) -> None:
    artifact = InductorExporter().export(model, tmp_path, server)
    assert artifact.notes == ("compiled for cpu, for the machine it was made on",)
    with artifact.open(model) as session:
        for size in (3, 1, 7):
            x = torch.rand(size, 4)
            wanted = model.forward({"x": x})[model.output_names[0]].numpy()
            # float32 sums of 8 products in another order keep more than 20 of 24 bits
            assert sqnr_db(wanted, session.run({"x": x.numpy()})[model.output_names[0]]) > 100.0


def test_without_a_compiler_the_error_says_what_to_install(
    model: Model, server: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ExportError, match="no-such-compiler"):
        InductorExporter().export(model, tmp_path, server)


def test_integers_are_refused(model: Model, server: Device, tmp_path: Path) -> None:
    quantized = replace(model, quantization=Quantization("int8", ONNX_X86))
    with pytest.raises(ExportError, match="int8"):
        InductorExporter().export(quantized, tmp_path, server)


def test_cuda_without_a_gpu_is_a_device_error(model: Model, server: Device, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    unit = replace(server.unit_for("inductor"), name="cuda")
    device = replace(server, units=(unit,), formats={"inductor": ("cuda", ("fp32",))})
    with pytest.raises(DeviceError, match="GPU"):
        InductorExporter().export(model, tmp_path, device)


def test_a_device_without_the_format_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="inductor"):
        InductorExporter().export(model, tmp_path, load_device("raspberry-pi-5"))

from __future__ import annotations

import json
import py_compile
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekit.devices.device import load_device
from edgekit.errors import ExportError
from edgekit.exporters.base import Artifact
from edgekit.exporters.tensorrt_exporter import TensorrtExporter
from edgekit.model import Model
from edgekit.quantization import Quantization
from edgekit.quantizers.lower import to_pt2e
from edgekit.quantizers.schemes import scheme_named
from edgekit.quantizers.static import StaticInt8

EXPORTER = TensorrtExporter()
JETSON = load_device("jetson-orin-nano")
NANO = load_device("jetson-nano")
FLOAT_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def quantized(convolutional: Model) -> Model:
    return StaticInt8(EXPORTER.scheme(JETSON), learned_rounding=False, bias_correction=False)(convolutional)


@pytest.fixture(scope="module")
def int8(quantized: Model, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return EXPORTER.export(quantized, tmp_path_factory.mktemp("tensorrt"), JETSON)


@pytest.mark.parametrize(("device", "opset"), [(JETSON, 17), (NANO, 13)], ids=["8.6", "8.2"])
@pytest.mark.parametrize("name", ["convolutional", "transformer"])
def test_float_agrees_with_torch_at_the_opset_of_the_devices_tensorrt(
    name: str, device: object, opset: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: Model = request.getfixturevalue(name)
    artifact = EXPORTER.export(model, tmp_path, device)  # type: ignore[arg-type]
    proto = onnx.load(str(artifact.path))
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [opset]
    sample = model.calibration[1]
    with artifact.open(model) as session:
        got = session.run({key: value.numpy() for key, value in sample.items()})["logits"]
    np.testing.assert_allclose(got, model.forward(sample)["logits"].numpy(), atol=FLOAT_TOLERANCE, rtol=0)


def test_int8_is_symmetric_with_float_biases_and_agrees_with_the_torch_graph(quantized: Model, int8: Artifact) -> None:
    proto = onnx.load(str(int8.path))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    points = [constants[n.input[2]] for n in proto.graph.node if n.op_type == "QuantizeLinear"]
    assert points and all(point.dtype == np.int8 and not point.any() for point in points)
    assert not any(array.dtype == np.int32 for array in constants.values())
    sample = quantized.calibration[2]
    with torch.no_grad():
        want = to_pt2e(quantized)(*sample.values())[0].numpy()
    with int8.open(quantized) as session:
        got = session.run({key: value.numpy() for key, value in sample.items()})["logits"]
    # Each requantization may round one step apart; a step is 1/127 of a range, four of them in a row.
    assert np.abs(got - want).max() <= 4 / 127 * np.abs(want).max()


def test_the_recipe_lies_beside_the_artifact_and_names_it(int8: Artifact) -> None:
    assert [path.name for path in int8.companions] == [
        "convolutional-int8.tensorrt-build_engine.sh",
        "convolutional-int8.tensorrt-build_engine.py",
        "convolutional-int8.tensorrt-ort_tensorrt.json",
    ]
    shell, script, settings = int8.companions
    assert all(path.parent == int8.path.parent for path in int8.companions)
    text = shell.read_text()
    assert f'--onnx="$here/{int8.path.name}"' in text and "--int8" in text and "--fp16" in text
    assert int8.path.name in script.read_text()
    options = json.loads(settings.read_text())["provider_options"]
    assert options["trt_int8_enable"] == options["trt_engine_cache_enable"] == "True"


def test_the_scripts_are_valid_python_and_shell(int8: Artifact, tmp_path: Path) -> None:
    shell, script, _ = int8.companions
    py_compile.compile(str(script), cfile=str(tmp_path / "script.pyc"), doraise=True)
    subprocess.run(["sh", "-n", str(shell)], check=True)


def test_the_shell_script_calls_trtexec_with_paths_beside_itself(int8: Artifact, tmp_path: Path) -> None:
    fake = tmp_path / "trtexec"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", str(int8.companions[0]), "/somewhere/cats.engine"],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert done.stdout.splitlines() == [
        f"--onnx={int8.path}",
        "--saveEngine=/somewhere/cats.engine",
        "--int8",
        "--fp16",
        "--memPoolSize=workspace:1024",
        "--timingCacheFile=/somewhere/cats.timing",
    ]


def test_the_builder_script_drives_the_tensorrt_api(int8: Artifact, tmp_path: Path) -> None:
    """A stand-in with the calls of TensorRT 10, no GPU: what the script asks for, in which order."""
    (tmp_path / "tensorrt.py").write_text(_STAND_IN)
    engine = tmp_path / "cats.engine"
    done = subprocess.run(
        ["python3", str(int8.companions[1]), str(engine)],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert engine.read_bytes() == b"plan of %d bytes" % int8.size_bytes
    assert engine.with_suffix(".timing").read_bytes() == b"timings"
    assert "flags INT8 FP16" in done.stdout


_STAND_IN = """
__version__ = "10.3.0"

class Logger:
    WARNING = 1
    def __init__(self, level): pass

class BuilderFlag:
    INT8, FP16 = "INT8", "FP16"

class MemoryPoolType:
    WORKSPACE = 0

class _Cache:
    def serialize(self): return b"timings"

class _Config:
    def __init__(self): self.flags = []
    def set_memory_pool_limit(self, pool, size): assert size == 1 << 30
    def set_flag(self, flag): self.flags.append(flag)
    def create_timing_cache(self, content): return _Cache()
    def set_timing_cache(self, cache, ignore_mismatch): self.cache = cache
    def get_timing_cache(self): return self.cache

class _Network:
    pass

class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags):
        assert flags == 0
        return _Network()
    def create_builder_config(self): return _Config()
    def build_serialized_network(self, network, config):
        print("flags", *config.flags)
        return b"plan of %d bytes" % network.size

class OnnxParser:
    num_errors = 0
    def __init__(self, network, logger): self.network = network
    def parse(self, content):
        self.network.size = len(content)
        return True
"""


@pytest.fixture(scope="module")
def dynamic(captured: Callable[..., Model]) -> Model:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 15 * 15, 10))
    return captured("dynamic", net, image={0: "batch"})


def test_a_dynamic_batch_gets_an_optimization_profile_everywhere(dynamic: Model, tmp_path: Path) -> None:
    artifact = TensorrtExporter(largest=(("batch", 8),)).export(dynamic, tmp_path, JETSON)
    shell, script, settings = (path.read_text() for path in artifact.companions)
    for kind, batch in (("min", 1), ("opt", 1), ("max", 8)):
        assert f"--{kind}Shapes=image:{batch}x3x32x32" in shell
        assert json.loads(settings)["provider_options"][f"trt_profile_{kind}_shapes"] == f"image:{batch}x3x32x32"
    assert "{'image': ((1, 3, 32, 32), (1, 3, 32, 32), (8, 3, 32, 32))}" in script


def test_a_limit_of_a_dimension_that_is_not_dynamic_is_an_error(dynamic: Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no dynamic dimension is called 'btach'"):
        TensorrtExporter(largest=(("btach", 8),)).export(dynamic, tmp_path, JETSON)


def test_asymmetric_integers_are_refused(convolutional: Model, tmp_path: Path) -> None:
    odd = replace(convolutional, quantization=Quantization("int8", scheme_named("onnx-x86")))
    with pytest.raises(ExportError, match="TensorRT wants symmetric integers"):
        EXPORTER.export(odd, tmp_path, JETSON)


def test_a_method_that_tensorrt_cannot_carry_is_refused(convolutional: Model, tmp_path: Path) -> None:
    odd = replace(convolutional, quantization=Quantization("int8-dynamic", scheme_named("tensorrt")))
    with pytest.raises(ExportError, match="tensorrt cannot carry int8-dynamic"):
        EXPORTER.export(odd, tmp_path, JETSON)


def test_the_same_model_gives_the_same_bytes(quantized: Model, int8: Artifact, tmp_path: Path) -> None:
    again = EXPORTER.export(quantized, tmp_path, JETSON)
    for first, second in zip((int8.path, *int8.companions), (again.path, *again.companions), strict=True):
        assert first.read_bytes() == second.read_bytes()

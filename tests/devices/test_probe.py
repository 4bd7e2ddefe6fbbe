from dataclasses import replace

import numpy as np
import pytest

from edgekit.devices import kernels as kernels_module
from edgekit.devices import probe as probe_module
from edgekit.devices.device import Unit, covers, figure_names, parse_profile
from edgekit.devices.kernels import best_seconds, kernels
from edgekit.devices.latency import predict
from edgekit.devices.machine import Machine
from edgekit.devices.probe import derive_peaks, probe, scale_efficiency, to_toml
from edgekit.devices.segment import Segment
from edgekit.errors import DeviceError

UNIT = Unit("cpu", 2, 2.0, ("avx2",), 10.0, 1.0, {"fp32": 100.0, "int8": 200.0}, {})


@pytest.fixture(scope="module")
def device():
    patch = pytest.MonkeyPatch()
    patch.setattr(kernels_module, "KERNEL_SECONDS", 0.01)
    patch.setattr(probe_module, "COPY_SECONDS", 0.05)
    steps = []
    measured = probe(progress=lambda step, done, total: steps.append((step, done, total)))
    patch.undo()
    assert steps[-1] == ("done", 3, 3)
    return measured


def test_the_profile_parses_back_equal(device):
    assert parse_profile(to_toml(device), "probe") == device


@pytest.mark.parametrize(("cores", "words"), [(1, "1 core"), (2, "2 cores")])
def test_its_title_counts_the_cores(cores, words):
    machine = Machine("Some CPU", "x86_64", cores, 2.0, 1 << 30, ("avx2",), "Linux")
    made = probe_module._device(machine, replace(UNIT, cores=cores), {}, "numpy", dispatched=False)
    assert made.title == f"Some CPU, {words}"


def test_every_measured_figure_names_its_source(device):
    bare = [figure for figure in figure_names(device) if not covers([*device.sources, *device.estimated], figure)]
    assert bare == []
    assert device.estimated


def test_a_probed_device_predicts_with_its_own_calibration(device):
    prediction = predict([Segment("conv", "conv", "fp32", 1e9, 1e6)], device, "onnx", 1)
    assert prediction.calibrated
    assert 0 < prediction.low_ms < prediction.high_ms


def test_threads_are_honoured_and_checked(monkeypatch):
    monkeypatch.setattr(kernels_module, "KERNEL_SECONDS", 0.0)
    monkeypatch.setattr(probe_module, "COPY_SECONDS", 0.0)
    assert probe(threads=1).unit("cpu").cores == 1
    for threads in (0, 10_000):
        with pytest.raises(DeviceError, match="threads"):
            probe(threads=threads)


def test_kernels_compute_what_they_say():
    """Against numpy, in the runtime: the models are encoded by hand."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    by_key = {kernel.key: kernel for kernel in kernels()}
    outputs = {}
    for key, kernel in by_key.items():
        session = onnxruntime.InferenceSession(kernel.model, options, providers=["CPUExecutionProvider"])
        outputs[key] = session.run(None, kernel.feeds)[0]
    pooled = by_key["pool/fp32"].feeds["x"]
    padded = np.pad(pooled, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    np.testing.assert_array_equal(outputs["pool/fp32"], windows.max((-2, -1)))
    np.testing.assert_allclose(outputs["norm/fp32"].sum(-1), 1.0, rtol=1e-5)
    assert outputs["conv/int8"].dtype == np.uint8
    assert outputs["matmul/int8"].dtype == np.int32
    assert outputs["depthwise/fp32"].shape == (1, 96, 56, 56)


def test_without_onnxruntime_numpy_stands_for_the_float_kernels():
    scaled = scale_efficiency({"matmul/fp32": 50.0}, UNIT)
    assert "conv/fp32" in scaled and "conv/int8" not in scaled


def test_kernels_twice_as_fast_give_twice_the_efficiency():
    slow = scale_efficiency({"matmul/fp32": 20.0, "conv/fp32": 20.0}, UNIT)
    fast = scale_efficiency({"matmul/fp32": 40.0, "conv/fp32": 40.0}, UNIT)
    assert set(slow) == set(fast)
    for key, value in slow.items():
        assert fast[key] == pytest.approx(2 * value)


@pytest.mark.parametrize(
    ("isa", "gain"), [(("avx2",), 2), (("avx2", "avx512_vnni"), 4), (("neon",), 2), (("neon", "dotprod"), 4)]
)
def test_integer_peaks_follow_the_instruction_set(isa, gain):
    peaks = derive_peaks(isa, 4, 2.0)
    assert peaks["int8"] == gain * peaks["fp32"]


def test_derived_peaks_match_the_profiles_of_the_pis():
    assert derive_peaks(("neon",), 4, 1.8) == pytest.approx({"fp32": 57.6, "int8": 115.2})
    assert derive_peaks(("neon", "fp16", "dotprod"), 4, 2.4) == pytest.approx(
        {"fp32": 153.6, "fp16": 307.2, "int8": 614.4}
    )


def test_best_seconds_calls_three_times_at_least():
    calls = []
    assert best_seconds(lambda: calls.append(1), 0.0) >= 0
    assert len(calls) == 4

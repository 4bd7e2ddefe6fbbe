from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.candidates import Bench
from edgekit.devices.device import load_device
from edgekit.devices.latency import Prediction
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.parity import Limits, judged_samples, run_model
from edgekit.passes.capture import Capture
from edgekit.progress import silent
from edgekit.quantizers.quantize import QuantizerOptions
from edgekit.selection import Built, Candidate

PI = load_device("raspberry-pi-5")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    torch.manual_seed(0)
    model = Capture()(Model("net", nn.Conv2d(16, 64, 3), {"x": torch.rand(1, 16, 32, 32)}))
    return Bench(model, PI, Limits(), QuantizerOptions(), tmp_path, 1, silent)


def passed(bench: Bench, format: str, precision: str, device_ms: float, host_ms: float = 1.0) -> Built:
    expected = Prediction(device_ms, device_ms / 2, device_ms * 2, (), "compute", calibrated=False)
    return Built(Candidate(format, precision), bench.model, bench.model, host_ms=host_ms, device=expected)


def test_fp16_is_not_built_where_int8_passed_and_should_be_faster(bench: Bench) -> None:
    half = Candidate("litert", "fp16")
    assert bench.outdone(half, []) == ""
    assert bench.outdone(half, [passed(bench, "litert", "int8", 1e9)]) == ""
    assert bench.outdone(half, [passed(bench, "onnx", "int8", 0.0)]) == "", "each format answers for itself"
    assert "litert int8" in bench.outdone(half, [passed(bench, "litert", "int8", 0.0)])
    refused = replace(passed(bench, "litert", "int8", 0.0), why_not="drop 3 points, allowed 1")
    assert bench.outdone(half, [refused]) == ""
    assert bench.outdone(replace(half, asked=True), [passed(bench, "litert", "int8", 0.0)]) == ""


def test_a_precision_is_not_built_where_its_float_twin_is_far_too_slow_here(bench: Bench) -> None:
    whole = bench._expected_ms("executorch", "fp32")
    rival = passed(bench, "onnx", "int8", whole / 4, host_ms=10.0)
    int8 = Candidate("executorch", "int8")

    def twin(host_ms: float) -> Built:
        return passed(bench, "executorch", "fp32", whole, host_ms=host_ms)

    assert "executorch fp32 takes 1,000 ms here, onnx int8 10.0 ms" in bench.outdone(int8, [rival, twin(1000.0)])
    assert bench.outdone(int8, [rival, twin(10.0)]) == ""
    assert bench.outdone(int8, [twin(1000.0)]) == "", "there is nothing else"
    assert bench.outdone(int8, [rival]) == "", "nothing was timed"
    assert bench.outdone(replace(int8, asked=True), [rival, twin(1000.0)]) == ""
    assert bench.outdone(Candidate("executorch", "fp32"), [rival, twin(1000.0)]) == ""


def test_a_format_is_left_out_where_another_passed_that_the_device_should_run_faster(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    fast, slow = passed(bench, "onnx", "int8", 0.0, host_ms=0.5), passed(bench, "onnx", "int8", 1e9, host_ms=0.5)
    assert bench.outrun("executorch", ["fp32", "int8"], [fast]).endswith("at best, onnx int8 0.00 µs")
    assert bench.outrun("executorch", ["fp32", "int8"], [slow]) == ""
    assert bench.outrun("executorch", ["fp32", "int8"], []) == ""


def test_what_loses_to_its_float_twin_leaves_no_format_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    twin = passed(bench, "onnx", "fp32", 1e9, host_ms=0.5)
    beaten = passed(bench, "onnx", "int8", 0.0, host_ms=0.6)
    assert bench.outrun("executorch", ["fp32", "int8"], [twin, beaten]) == ""


def test_on_the_machines_own_architecture_the_clock_decides(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert bench.outrun("executorch", ["fp32", "int8"], [passed(bench, "onnx", "int8", 0.0)]) == ""


def test_where_pruning_lost_too_much_the_hint_speaks_of_pruning(bench: Bench) -> None:
    (answer,) = run_model(bench.model, judged_samples(bench.model)).items()
    whole = {answer[0]: -answer[1]}
    built = replace(bench, original=whole, limits=Limits(max_drop=1.0)).build(
        Candidate("onnx", "fp32", asked=True), OnnxExporter()
    )
    assert built.error is not None
    assert "prune less" in built.error.hint
    assert "--quantize none" not in built.error.hint

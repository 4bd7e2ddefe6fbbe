"""The run side on ARM: installed without torch, and giving what x86 gives on the same bundle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from conftest import Case
    from machine import Cpu, Machine

FLOAT_TOLERANCE = 1e-3
# Layers of the net that round to int8: stem, depthwise, pointwise, add, last convolution, pooling, classifier.
ROUNDING_LAYERS = 7
CPUS = ("cortex-a72", "cortex-a76")  # Raspberry Pi 4; Raspberry Pi 5, with the int8 dot product
RUN_SIDE = (
    "edgekit.bundle, edgekit.devices.device, edgekit.report.metrics, edgekit.runtimes.load, edgekit.runtimes.predict, "
    "edgekit.runtimes.onnx_session, edgekit.runtimes.litert_session, edgekit.cli.main"
)


def run_there(machine: Machine, case: Case, cpu: Cpu) -> np.ndarray:
    """What `edgekit run --json` prints on the emulated processor: [samples, classes]."""
    inputs = [word for path in case.samples for word in ("--input", str(path))]
    result = machine.edgekit(["run", str(case.bundle), *inputs, "--threads", "1", "--json"], cpu)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["results"]
    return np.concatenate([np.asarray(next(iter(row["outputs"].values())), np.float32) for row in rows])


def test_run_side_imports_for_aarch64_without_torch(machine: Machine) -> None:
    code = (
        "import platform, sys; sys.modules['torch'] = None; "
        f"import {RUN_SIDE}; "
        "print(platform.machine(), edgekit.__file__, sorted(edgekit.devices.device.profile_names())[0])"
    )
    result = machine.run(["-c", code])
    assert result.returncode == 0, result.stderr
    architecture, source, profile = result.stdout.split()
    assert architecture == "aarch64"
    assert str(machine.cache) in source, "the wheel is meant, not the working tree"
    assert profile == "jetson-agx-orin", "the wings' data files are in the wheel"


@pytest.mark.parametrize("case", [("onnx", "none"), ("litert", "none")], ids=lambda row: row[0], indirect=True)
@pytest.mark.parametrize("cpu", CPUS)
def test_float_bundle_gives_what_x86_gives(machine: Machine, case: Case, cpu: Cpu) -> None:
    answers = run_there(machine, case, cpu)
    np.testing.assert_allclose(answers, case.answers, rtol=0, atol=FLOAT_TOLERANCE * np.ptp(case.answers))
    assert (answers.argmax(1) == case.answers.argmax(1)).all()


@pytest.mark.parametrize("case", [("onnx", "int8"), ("litert", "int8")], ids=lambda row: row[0], indirect=True)
@pytest.mark.parametrize("cpu", CPUS)
def test_int8_bundle_gives_what_x86_gives_within_rounding(machine: Machine, case: Case, cpu: Cpu) -> None:
    """Integer sums are exact on both; only how a sum is scaled back to 8 bits differs.

    x86 kernels multiply by a float scale and round half to even, ARM's may multiply by a fixed-point one and round
    half up: at most one step apart per layer, and only next to a tie. With variance kept from layer to layer a step
    of one is about a step of the next, so that ROUNDING_LAYERS output steps (the range in 255) bound the sum.
    """
    answers = run_there(machine, case, cpu)
    step = np.ptp(case.answers) / 255
    assert np.abs(answers - case.answers).max() <= ROUNDING_LAYERS * step
    assert (answers.argmax(1) == case.answers.argmax(1)).all()

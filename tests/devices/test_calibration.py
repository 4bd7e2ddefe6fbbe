import numpy as np
import pytest

from edgekit.devices.calibration import Fit, Hardware, Run, estimate_ms, fit_efficiency, reference_calibration
from edgekit.devices.segment import Segment

HARDWARE = Hardware({"fp32": 100.0, "int8": 400.0}, 10.0)
TRUTH = Fit(
    {"conv/fp32": 0.7, "conv/int8": 0.4, "matmul/fp32": 0.5, "other/fp32": 0.1, "memory/fp32": 1.6, "memory/int8": 0.8},
    2.0,
)
PRIOR = Fit(dict.fromkeys(TRUTH.values, 0.5), 5.0)


def network(generator, name):
    segments = [
        Segment(
            str(index),
            str(generator.choice(["conv", "matmul"])),
            "int8" if generator.random() < 0.4 else "fp32",
            float(10 ** generator.uniform(5, 8.5)),
            float(10 ** generator.uniform(4, 7)),
        )
        for index in range(int(generator.integers(5, 60)))
    ]
    segments = [s if s.kind == "conv" else Segment(s.name, s.kind, "fp32", s.flops, s.bytes_moved) for s in segments]
    return Run(name, tuple(segments), estimate_ms(segments, HARDWARE, TRUTH))


@pytest.fixture(scope="module")
def runs():
    generator = np.random.default_rng(3)
    return [network(generator, str(index)) for index in range(24)]


def test_the_fit_finds_the_values_that_made_the_latencies(runs):
    fit = fit_efficiency(runs, HARDWARE, PRIOR, ridge=1e-6)
    for key in ("conv/fp32", "conv/int8", "matmul/fp32", "memory/fp32"):
        assert fit.values[key] == pytest.approx(TRUTH.values[key], rel=0.02)
    assert fit.dispatch_us == pytest.approx(TRUTH.dispatch_us, rel=0.02)


def test_one_absurd_measurement_does_not_bend_the_fit(runs):
    odd = [Run(run.name, run.segments, run.measured_ms * (50 if run is runs[0] else 1)) for run in runs]
    fit = fit_efficiency(odd, HARDWARE, PRIOR, ridge=1e-6)
    errors = [abs(estimate_ms(run.segments, HARDWARE, fit) / run.measured_ms - 1) for run in runs[1:]]
    assert np.median(errors) < 0.1


def test_values_that_no_run_shows_stay_at_the_prior(runs):
    fit = fit_efficiency(runs, HARDWARE, PRIOR)
    assert fit.values["other/fp32"] == pytest.approx(PRIOR.values["other/fp32"])


def test_every_value_stays_above_zero_on_impossible_data(runs):
    fit = fit_efficiency([Run(run.name, run.segments, 1e-6) for run in runs], HARDWARE, PRIOR)
    assert all(value > 0 for value in fit.values.values()) and fit.dispatch_us > 0


@pytest.mark.parametrize("family", ["cpu-x86_64", "cpu-aarch64", "gpu"])
def test_the_reference_has_a_value_for_every_kind_of_segment(family):
    reference = reference_calibration(family)
    for kind in (
        "conv",
        "depthwise",
        "matmul",
        "norm",
        "pool",
        "elementwise",
        "movement",
        "other",
        "memory",
    ):
        for precision in ("fp32", "fp16", "int8"):
            assert reference.efficiency(kind, precision) > 0
    assert 1 < reference.own_spread < reference.spread
    assert not reference.measured


def test_format_factors_know_the_architecture():
    reference = reference_calibration("cpu-x86_64")
    assert reference.format_factor("x86_64", "onnx", "int8") == 1.0
    assert reference.format_factor("x86_64", "executorch", "int8") == 1.88
    assert reference.format_factor("riscv64", "executorch", "int8") == 1.0

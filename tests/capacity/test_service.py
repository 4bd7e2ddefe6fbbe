from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.bundle import Bundle
from edgekit.bundle.manifest import Part
from edgekit.capacity.service import Service, batched, contention, fit_service, predict_service
from edgekit.devices.device import load_device
from edgekit.devices.segment import Segment
from edgekit.errors import DataError, DeviceError

SIZES = (1, 2, 4, 8, 16, 32)


@pytest.fixture
def part(whole_bundle: object) -> Part:
    with Bundle.open(str(whole_bundle)) as bundle:
        return bundle.manifest.part()


def _heavy(part: Part, weights: float, rows: float, flops: float) -> Part:
    """One layer of `weights` bytes that moves `rows` bytes a row."""
    layer = Segment("layer", "matmul", "fp32", flops, weights + rows)
    return part.model_copy(update={"segments": (layer,), "size_bytes": int(weights)})


@pytest.mark.parametrize(
    "true",
    [
        Service(0.002, 0.001),
        Service(0.0, 0.001),
        Service(0.001, 0.002, weight_s=0.008, activation_s=0.0),
        Service(0.0005, 0.001, spill_s=0.0007, cached=8),
    ],
)
def test_a_fit_finds_the_run_times_that_made_the_points(true: Service) -> None:
    found = fit_service({rows: true.seconds(rows) for rows in SIZES}, "made")
    for rows in (*SIZES, 3, 12, 24):
        assert found.seconds(rows) == pytest.approx(true.seconds(rows), rel=1e-6)
    assert max(abs(error) for _, error in found.residuals) < 1e-6


def test_a_bend_within_noise_is_not_taken() -> None:
    # A line with 2 % of noise of alternating sign: a bend would fit it better and predict it worse.
    points = {rows: (0.001 + 0.001 * rows) * (1.02 if index % 2 else 0.98) for index, rows in enumerate(SIZES)}
    found = fit_service(points, "made")
    assert found.weight_s == found.spill_s == 0
    assert all(abs(error) < 0.04 for _, error in found.residuals)


def test_fixed_time_is_never_negative() -> None:
    found = fit_service({1: 0.001, 2: 0.003, 4: 0.009}, "made")
    assert found.fixed_s >= 0
    assert found.seconds(1) > 0


def test_too_few_points_are_refused() -> None:
    with pytest.raises(DataError, match="1 batch sizes"):
        fit_service({4: 0.01}, "made")


def test_small_batches_wait_for_weights_and_large_ones_for_arithmetic() -> None:
    service = Service(0.0001, 0.001, weight_s=0.01, activation_s=0.0001)
    assert service.bound(1) == "memory"
    assert service.bound(64) == "compute"
    assert replace(service, fixed_s=1.0).bound(1) == "fixed"
    assert service.per_second(64) > service.per_second(1)
    assert service.seconds(0) == 0


def test_weights_cross_memory_once_a_batch(part: Part) -> None:
    heavy = _heavy(part, weights=8e6, rows=1e5, flops=1e6)
    assert batched(heavy, 10)[0].bytes_moved == pytest.approx(8e6 + 10 * 1e5)
    assert batched(heavy, 10)[0].flops == pytest.approx(1e7)


def test_a_prediction_sees_what_binds(part: Part) -> None:
    device = load_device("x86-server")
    weights = predict_service(_heavy(part, 400e6, 1e3, 1e6), device, SIZES)
    arithmetic = predict_service(_heavy(part, 1e3, 1e3, 1e9), device, SIZES)
    # Weights alone: a batch takes what one row takes. Arithmetic alone: as many times as it has rows.
    assert weights.seconds(32) == pytest.approx(weights.seconds(1), rel=0.02)
    assert arithmetic.seconds(32) == pytest.approx(32 * arithmetic.seconds(1), rel=0.02)
    assert arithmetic.bound(16) == "compute"
    assert "nothing was run there" in weights.origin


def test_a_gpu_is_predicted_from_its_profile(part: Part) -> None:
    device = load_device("jetson-agx-orin")
    found = predict_service(part.model_copy(update={"format": "tensorrt"}), device, SIZES)
    assert found.seconds(1) > 0
    assert "gpu" in found.origin
    with pytest.raises(DeviceError):
        predict_service(part.model_copy(update={"format": "inductor"}), device, SIZES)


def test_a_part_without_costs_cannot_be_predicted(part: Part) -> None:
    with pytest.raises(DataError, match="tells no costs"):
        predict_service(part.model_copy(update={"segments": ()}), load_device("x86-server"), SIZES)


def test_workers_contend_for_cores_and_for_memory() -> None:
    device = load_device("x86-server")  # two cores, of which one alone saturates the memory
    assert contention(device, "onnx", 1, 1) == (1.0, 1.0)
    compute, memory = contention(device, "onnx", 2, 1)
    assert compute == 1.0
    assert memory == pytest.approx(2 * 9.08 / 9.1, rel=0.02)
    assert contention(device, "onnx", 4, 1)[0] == 2.0
    assert contention(load_device("jetson-agx-orin"), "tensorrt", 3, 1) == (3.0, 3.0)

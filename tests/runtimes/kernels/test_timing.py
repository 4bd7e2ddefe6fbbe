"""Bounds and laps, as far as no GPU is needed; test_on_gpu.py runs the rest where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from edgekit.errors import DeviceError
from edgekit.registry import KERNELS
from edgekit.runtimes.kernels import timing
from edgekit.runtimes.kernels.base import Cost
from edgekit.runtimes.kernels.kmeans import UPDATE
from edgekit.runtimes.kernels.ragged_decode import DECODE
from edgekit.runtimes.kernels.timing import Rates, Timing, require_cuda, steady, time_kernel

RATES = Rates(gbps=2000.0, bf16_tflops=500.0, int8_tops=1000.0)


def test_bounds_are_bytes_and_operations_over_what_was_measured() -> None:
    cost = Cost(flops=1e12, bytes_moved=1e9)
    assert RATES.memory_ms(cost) == pytest.approx(0.5)
    assert RATES.arithmetic_ms(cost) == pytest.approx(2.0)
    assert RATES.arithmetic_ms(Cost(1e12, 1e9, unit="int8")) == pytest.approx(1.0)


def test_the_larger_bound_is_the_one_that_limits() -> None:
    found = Timing("k", 4.0, 3.0, 0, 1, None, memory_ms=1.0, arithmetic_ms=2.0, passes=1.0)
    assert found.bound_ms == 2.0 and found.limited_by == "arithmetic" and found.of_bound == 0.5
    found = Timing("k", 4.0, 3.0, 0, 1, 9.0, memory_ms=3.0, arithmetic_ms=2.0, passes=1.0)
    assert found.limited_by == "memory" and found.of_bound == 0.75


def test_laps_that_warm_up_do_not_count() -> None:
    assert steady([100.0, 50.0, 9.0, 9.0, 9.0, *[1.0] * 30]) == [1.0] * 30
    assert steady([900.0, 700.0, 701.0, 702.0]) == [700.0, 701.0, 702.0]


def test_only_products_of_int8_count_at_the_rate_of_int8() -> None:
    units = {}
    for name in KERNELS:
        kernel = KERNELS.load(name)
        units[name] = kernel.cost(*kernel.examples()[0].arguments).unit
    assert [name for name, unit in units.items() if unit == "int8"] == ["matmul-w8a8"]


def test_without_a_gpu_nothing_is_timed() -> None:
    if torch.cuda.is_available():
        assert require_cuda().type == "cuda"
    else:
        with pytest.raises(DeviceError, match="no CUDA GPU"):
            require_cuda()


def test_every_configuration_that_computes_the_same_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor: laps are made up here, launches, trials and comparisons are the real ones."""
    laps = iter([5.0, 3.0, 4.0, 70.0])
    called: list[object] = []

    def lap(action: Callable[[], object], device: torch.device) -> float:
        called.append(action())
        return next(laps)

    monkeypatch.setattr(timing, "median_ms", lap)
    kernel = replace(DECODE, load=lambda _: DECODE.examples()[0].arguments)
    found = time_kernel(kernel, torch.device("cpu"), RATES)
    assert (found.own_config, found.best_config) == (2, 0)
    assert (found.kernel_ms, found.best_ms, found.reference_ms) == (5.0, 3.0, 70.0)
    assert len(called) == 4 and found.memory_ms > 0 and found.kernel == "ragged-decode"


def test_a_reference_that_needs_too_much_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def lap(action: Callable[[], object], device: torch.device) -> float:
        action()
        return 1.0

    def too_large(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(timing, "median_ms", lap)
    kernel = replace(UPDATE, load=lambda _: UPDATE.examples()[0].arguments, reference=too_large)
    found = time_kernel(kernel, torch.device("cpu"), RATES)
    assert found.reference_ms is None and found.own_config == found.best_config == 0

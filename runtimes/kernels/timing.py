"""Time of a kernel on a GPU beside the bound that memory and arithmetic set."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from edgekit.errors import DeviceError
from edgekit.runtimes.kernels.base import Kernel

WARM_UP, RUNS = 5, 30
# Larger than any L2 cache: written between runs, so that operands come from memory.
FLUSH_BYTES = 256 << 20


@dataclass(frozen=True)
class Timing:
    """Milliseconds, medians. `bound_ms`: the larger of what `gbps` and `tflops`, measured on this GPU, leave."""

    kernel: str
    kernel_ms: float
    reference_ms: float
    bound_ms: float
    limited_by: str
    passes: float

    @property
    def of_bound(self) -> float:
        return self.bound_ms / self.kernel_ms


def require_cuda() -> torch.device:
    """Raises DeviceError where there is no GPU."""
    if not torch.cuda.is_available():
        raise DeviceError(
            "no CUDA GPU is here to time kernels on",
            hint="`edgekit kernels check` runs them in the interpreter, `edgekit kernels compile` without a GPU",
        )
    return torch.device("cuda")


def measure_gbps(device: torch.device) -> float:
    """A copy of half a gigabyte, both directions counted."""
    source = torch.empty(1 << 27, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _median_ms(lambda: target.copy_(source)) / 1e6


def measure_tflops(device: torch.device) -> float:
    """A bf16 product of 8192 x 8192 matrices."""
    one = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    return 2 * 8192.0**3 / _median_ms(lambda: one @ one) / 1e9


def time_kernel(kernel: Kernel, device: torch.device, gbps: float, tflops: float) -> Timing:
    arguments = kernel.load(device)
    cost = kernel.cost(*arguments)
    by_memory, by_work = cost.bytes_moved / gbps / 1e6, cost.flops / tflops / 1e9
    return Timing(
        kernel.name,
        _median_ms(lambda: kernel.launch(*arguments)),
        _median_ms(lambda: kernel.reference(*arguments)),
        max(by_memory, by_work),
        "memory" if by_memory >= by_work else "arithmetic",
        cost.passes,
    )


def _median_ms(action: Callable[[], object]) -> float:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    laps: list[float] = []
    for run in range(WARM_UP + RUNS):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        action()
        end.record()
        torch.cuda.synchronize()
        if run >= WARM_UP:
            laps.append(start.elapsed_time(end))
    return statistics.median(laps)

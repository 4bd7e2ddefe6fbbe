"""Time of a kernel on a GPU beside the bounds that memory and arithmetic set.

Laps are timed by events on the GPU's own clock. Before each a buffer larger than any L2 cache is written, so that
operands come from memory, and so that the processor has time to queue what follows. The first laps, which compile and
warm up, do not count. No GPU has run this file yet.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from edgekit.errors import DeviceError
from edgekit.runtimes.kernels.base import Cost, Kernel, difference
from edgekit.runtimes.kernels.choice import trying

logger = logging.getLogger(__name__)

WARM_UP, RUNS = 5, 30
# A reference may take a second: then fewer laps will do.
ENOUGH_MS, FEWEST_RUNS = 2000.0, 3
FLUSH_BYTES = 256 << 20


@dataclass(frozen=True)
class Rates:
    """Measured on this GPU: memory in GB/s, products in units of 10^12 operations a second."""

    gbps: float
    bf16_tflops: float
    int8_tops: float

    def memory_ms(self, cost: Cost) -> float:
        return cost.bytes_moved / self.gbps / 1e6

    def arithmetic_ms(self, cost: Cost) -> float:
        return cost.flops / (self.int8_tops if cost.unit == "int8" else self.bf16_tflops) / 1e9


@dataclass(frozen=True)
class Timing:
    """Milliseconds, medians. `kernel_ms`: of the launch as calls make it; `best_ms`: of its best configuration, which
    is number `best_config` where the launch takes `own_config`. `reference_ms`: None where memory does not suffice.
    `memory_ms`, `arithmetic_ms`: the least that either leaves."""

    kernel: str
    kernel_ms: float
    best_ms: float
    own_config: int
    best_config: int
    reference_ms: float | None
    memory_ms: float
    arithmetic_ms: float
    passes: float

    @property
    def bound_ms(self) -> float:
        return max(self.memory_ms, self.arithmetic_ms)

    @property
    def limited_by(self) -> str:
        return "memory" if self.memory_ms >= self.arithmetic_ms else "arithmetic"

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


def measure_rates(device: torch.device) -> Rates:
    """A copy of half a gigabyte, both directions counted, and products of 8192 x 8192 matrices."""
    source = torch.empty(1 << 27, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copied = median_ms(lambda: target.copy_(source), device)
    one = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    codes = torch.randint(-127, 128, (8192, 8192), device=device, dtype=torch.int8)
    operations = 2 * 8192.0**3 / 1e9
    return Rates(
        2 * source.numel() * 4 / copied / 1e6,
        operations / median_ms(lambda: one @ one, device),
        operations / median_ms(lambda: torch._int_mm(codes, codes.T), device),
    )


def time_kernel(kernel: Kernel, device: torch.device, rates: Rates) -> Timing:
    """On the kernel's own load, in every configuration that it offers."""
    arguments = kernel.load(device)
    cost = kernel.cost(*arguments)
    with trying() as own:
        wanted = kernel.launch(*arguments)
    laps = {own.taken: median_ms(lambda: kernel.launch(*arguments), device)}
    for index in range(own.offered):
        if index != own.taken and reproduces(kernel, arguments, wanted, index):
            with trying(index):
                laps[index] = median_ms(lambda: kernel.launch(*arguments), device)
    best = min(laps, key=lambda index: laps[index])
    try:
        reference_ms = median_ms(lambda: kernel.reference(*arguments), device)
    except torch.OutOfMemoryError:  # it may hold what the kernel is there not to hold
        reference_ms = None
    return Timing(
        kernel.name, laps[own.taken], laps[best], own.taken, best, reference_ms,
        rates.memory_ms(cost), rates.arithmetic_ms(cost), cost.passes,
    )  # fmt: skip


def reproduces(kernel: Kernel, arguments: tuple[Any, ...], wanted: Any, config: int) -> bool:
    """Whether the launch runs in that configuration, and gives `wanted` but for rounding."""
    allowed = 2 * max(example.tolerance for example in kernel.examples())
    try:
        with trying(config):
            return difference(kernel.launch(*arguments), wanted) <= allowed
    except Exception as error:  # too few registers or too little shared memory, in the compiler's or the driver's words
        logger.info("%s does not run in its configuration %d here: %s", kernel.name, config, error)
        return False


def median_ms(action: Callable[[], object], device: torch.device) -> float:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    laps: list[float] = []
    while len(laps) < WARM_UP + RUNS and (len(laps) <= FEWEST_RUNS or sum(laps) < ENOUGH_MS):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        action()
        end.record()
        torch.cuda.synchronize(device)
        laps.append(start.elapsed_time(end))
    return statistics.median(steady(laps))


def steady(laps: list[float]) -> list[float]:
    """Those behind the warm-up; of a few long ones, all but the first."""
    return laps[WARM_UP:] if len(laps) > WARM_UP + FEWEST_RUNS else laps[1:]

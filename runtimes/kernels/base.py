"""What a kernel states of itself: reference, examples, costs, and how it is compiled without a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from edgekit.runtimes.codecs.base import Codec

logger = logging.getLogger(__name__)

Tensors = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Cost:
    """Of one call. `bytes_moved`: every operand read once and every result written once, the least that memory sees.
    `passes`: how often the kernel itself crosses its largest operand (Nayak et al., FuseMax, arXiv:2406.10491).
    `unit`: whose rate bounds the arithmetic, tensor cores in bf16 or in int8."""

    flops: float
    bytes_moved: float
    passes: float = 1.0
    unit: Literal["bf16", "int8"] = "bf16"


@dataclass(frozen=True)
class Config:
    """Constants of one compilation (tile sizes), the warps of a program and the stages of its pipeline."""

    constants: Mapping[str, int]
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Entry:
    """A jitted function as it is compiled ahead of time. `signature`: Triton's type of each argument that is no
    constant, such as `*bf16` or `i32`. `configs`: what `launch` may choose, most likely first."""

    function: Any
    signature: Mapping[str, str]
    configs: tuple[Config, ...]

    @property
    def name(self) -> str:
        return str(self.function.__name__).strip("_")


@dataclass(frozen=True)
class Example:
    """Arguments of one call. `tolerance`: the largest difference that rounding may make, relative to the largest value
    of the reference, with the reason in `why`."""

    name: str
    arguments: tuple[Any, ...]
    tolerance: float = 1e-5
    why: str = "float32 sums in another order"


@dataclass(frozen=True)
class Kernel:
    """`reference` and `launch` take the same arguments and return the same tensors. `examples`: odd, empty and extreme
    shapes, small enough for the interpreter. `load`: a call of a size that servers see, on a device, to time.
    `entries_for`: in place of `entries`, those that decode what a codec of a bundle sends; none where it cannot."""

    name: str
    formula: str
    source: str
    reference: Callable[..., Tensors]
    launch: Callable[..., Tensors]
    cost: Callable[..., Cost]
    examples: Callable[[], Sequence[Example]] = field(repr=False)
    load: Callable[[torch.device], tuple[Any, ...]] = field(repr=False)
    entries: tuple[Entry, ...] = field(repr=False)
    entries_for: Callable[[Codec], tuple[Entry, ...]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Disagreement:
    """Where kernel and reference differ: `error` relative to the largest value, above `allowed`."""

    kernel: str
    example: str
    error: float
    allowed: float

    def __str__(self) -> str:
        return (
            f"{self.kernel} on {self.example!r}: off by {self.error:.3g} of the largest value, allowed {self.allowed:g}"
        )


def check(kernel: Kernel, device: torch.device | str = "cpu") -> list[Disagreement]:
    """Runs every example of `kernel` on `device` (the processor only under the interpreter) against its reference."""
    found = []
    for example in kernel.examples():
        arguments = tuple(_to(argument, device) for argument in example.arguments)
        error = difference(kernel.launch(*arguments), kernel.reference(*arguments))
        if not error <= example.tolerance:
            found.append(Disagreement(kernel.name, example.name, error, example.tolerance))
    return found


def difference(got: Tensors, wanted: Tensors) -> float:
    """The largest difference over the largest finite value of each wanted tensor; infinity where shapes, types or the
    places of infinities and NaN differ. Integers have to be equal."""
    pairs = list(zip(_tuple(got), _tuple(wanted), strict=True))
    worst = 0.0
    for one, other in pairs:
        if one.shape != other.shape or one.dtype != other.dtype:
            return float("inf")
        if not other.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(one, other) else float("inf"))
            continue
        a, b = one.double(), other.double()
        finite = b.isfinite()
        if not torch.equal(a[~finite].nan_to_num(nan=0.5), b[~finite].nan_to_num(nan=0.5)):
            return float("inf")
        if not finite.any():
            continue
        scale = b[finite].abs().max().clamp(min=1e-30)
        error = float(((a - b)[finite].abs().max() / scale).item())
        worst = max(worst, error if error == error else float("inf"))
    return worst


_TRUSTED: dict[tuple[str, str], bool] = {}


def call(kernel: Kernel, *arguments: Any) -> Any:
    """The kernel on CUDA tensors, the reference elsewhere."""
    device = next((argument.device for argument in arguments if isinstance(argument, Tensor)), torch.device("cpu"))
    if device.type != "cuda" or not _trusted(kernel, device):
        return kernel.reference(*arguments)
    return kernel.launch(*arguments)


def _trusted(kernel: Kernel, device: torch.device) -> bool:
    """Once for each kernel and GPU: compiled and equal to its reference on its own examples."""
    key = (kernel.name, str(device))
    if key not in _TRUSTED:
        try:
            wrong = "; ".join(map(str, check(kernel, device)))
        except Exception as error:  # a compiler or driver fails in ways of its own, and the reference still answers
            wrong = f"{type(error).__name__}: {error}"
        _TRUSTED[key] = not wrong
        if wrong:
            logger.error("kernel %s is not used on %s, its reference is: %s", kernel.name, device, wrong)
    return _TRUSTED[key]


def _to(argument: Any, device: torch.device | str) -> Any:
    return argument.to(device) if isinstance(argument, Tensor) else argument


def _tuple(value: Tensors) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)

"""The torch engine of a node: a part's float program, compiled where it is served, on the processor or on a GPU.

    session = open_torch(bundle, bundle.manifest.part("tail-blocks-3"), TorchOptions(device="cuda", precision="bf16"))

The part keeps its identity, its file and its digests; beside it lies a companion, the float program of the same stage,
which `edgekit export ... --engine torch` writes. Importing this package loads no torch.

The GPU's half has not been run, for no GPU was at hand: streams and graphs (`streams.Gpu`), weights and budget on a
GPU, packages for CUDA. The same lanes, runners, budget and packages with weights outside are tested on the processor,
and `tests/runtimes/torch_engine/test_gpu.py` runs wherever there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import UnknownNameError, UsageError
from edgekit.runtimes.session import Session

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.bundle.manifest import Part

PROGRAM_SUFFIX = ".torch.pt2"
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "w4a16")
DEVICES = ("cpu", "cuda")
BUCKETS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class TorchOptions:
    """`device`: cpu, cuda or cuda:N. `compile` False runs the program as it is. `memory_bytes`: what the models of one
    device may take together, None what the device has (the processor: no bound). `threads` None takes every core.
    `cache_dir`: where compiled packages stay, None the user's cache. `buckets`: batch sizes of which each has a CUDA
    graph; a larger batch runs without one.

    Raises UnknownNameError for a device or precision, UsageError for numbers that cannot be.
    """

    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = True
    memory_bytes: int | None = None
    threads: int | None = None
    cache_dir: Path | None = None
    buckets: tuple[int, ...] = BUCKETS

    def __post_init__(self) -> None:
        kind, colon, index = self.device.partition(":")
        if kind not in DEVICES or (colon and not (kind == "cuda" and index.isdigit())):
            raise UnknownNameError("torch device", self.device, (*DEVICES, "cuda:0"))
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision of the torch engine", self.precision, PRECISIONS)
        if not self.buckets or min(self.buckets) < 1:
            raise UsageError(f"buckets {self.buckets}, allowed batch sizes of 1 and more")
        for name in ("memory_bytes", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}, allowed 1 or more", hint="leave it out for no bound")


def open_torch(bundle: Bundle, part: Part, options: TorchOptions = TorchOptions()) -> Session:
    """A Session of `part`, loaded, checked against its own eager form where it was compiled, not warmed up.

    Raises SessionError for a part without a program, or one that torch refuses; MissingExtraError without torch;
    DeviceError where the device is not there, or has too little memory; NumericsError where the precision overflows.
    """
    from edgekit.runtimes.torch_engine.session import open_part

    return open_part(bundle, part, options)


__all__ = ["BUCKETS", "DEVICES", "PRECISIONS", "PROGRAM_SUFFIX", "TorchOptions", "open_torch"]

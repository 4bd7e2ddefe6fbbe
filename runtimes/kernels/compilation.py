"""Kernels compiled ahead of time, no GPU needed: machine code for an architecture, and what it takes of a processor."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from edgekit.errors import ExportError, UsageError
from edgekit.runtimes.kernels.base import Config, Entry, Kernel

WARP = 32
# What a program may have, by architecture: shared memory in bytes (CUDA C programming guide, table of compute
# capabilities: per block, opted in) and registers of a thread.
SHARED_BYTES = {"sm_80": 163 * 1024, "sm_87": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
MOST_REGISTERS = 255
ARCHITECTURES = tuple(SHARED_BYTES)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def check_architecture(arch: str) -> None:
    """Raises UsageError for one that is not known."""
    if arch not in ARCHITECTURES:
        raise UsageError(
            f"no architecture {arch!r}, allowed: {', '.join(ARCHITECTURES)}",
            hint="sm_87 is a Jetson Orin; what a GPU is, `nvidia-smi --query-gpu=compute_cap --format=csv` says",
        )


@dataclass(frozen=True)
class Binary:
    """`symbol`: the function's name in the machine code. `arguments`: name and Triton's type, in the order of a launch.
    `spilled_bytes`: of a thread's registers that went to memory, 0 where all fit. `shared_bytes` of a program, asked
    for at the launch; `scratch_bytes` of global memory, for which the launch would have to pass a pointer."""

    kernel: str
    entry: str
    symbol: str
    arch: str
    arguments: tuple[tuple[str, str], ...]
    config: Config
    registers: int
    spilled_bytes: int
    shared_bytes: int
    scratch_bytes: int
    cubin: bytes

    @property
    def types(self) -> str:
        """Of the tensors, each named once."""
        return "+".join(dict.fromkeys(kind.lstrip("*") for _, kind in self.arguments if kind[0] == "*"))

    @property
    def fits(self) -> bool:
        return self.shared_bytes <= SHARED_BYTES[self.arch] and self.registers <= MOST_REGISTERS


def compile_kernel(kernel: Kernel, arch: str) -> Iterator[Binary]:
    """Every entry in every configuration, for `arch` such as sm_87.

    Raises UsageError for an architecture that is not known, ExportError where the compiler refuses.
    """
    for entry in kernel.entries:
        yield from compile_entry(kernel.name, entry, arch)


def compile_entry(kernel: str, entry: Entry, arch: str) -> Iterator[Binary]:
    """`entry` of the kernel of that name in every configuration; raises like `compile_kernel`."""
    check_architecture(arch)
    for config in entry.configs:
        yield _compile(kernel, entry, config, arch)


def _compile(name: str, entry: Entry, config: Config, arch: str) -> Binary:
    signature = {**entry.signature, **dict.fromkeys(config.constants, "constexpr")}
    ordered = {argument: signature[argument] for argument in entry.function.arg_names}
    # As at a call: tensors begin at multiples of 16 bytes, and loads may be wide.
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(ordered.values()) if kind[0] == "*"}
    source: Any = ASTSource(entry.function, ordered, constexprs=dict(config.constants), attrs=aligned)
    options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
    try:
        with triton.knobs.compilation.scope():
            # Tables of lines name the files of this machine, and differ from one to the next.
            triton.knobs.compilation.disable_line_info = True
            made = triton.compile(source, target=GPUTarget("cuda", int(arch[3:]), WARP), options=options)
    except Exception as error:  # the compiler's layers raise their own
        raise ExportError(f"{name} does not compile for {arch}: {type(error).__name__}: {error}") from error
    cubin = made.asm["cubin"]
    registers, stack, _, local = resource_usage(cubin)
    arguments = tuple((argument, kind) for argument, kind in ordered.items() if kind != "constexpr")
    told = made.metadata
    scratch = int(told.global_scratch_size) + int(told.profile_scratch_size)
    return Binary(
        name, entry.name, told.name, arch, arguments, config, registers, stack + local, int(told.shared), scratch, cubin
    )


def resource_usage(cubin: bytes) -> tuple[int, int, int, int]:
    """Registers of a thread, and bytes of stack, shared and local memory, as CUDA's own tool reads the binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", str(path)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
    found = _USAGE.search(told.stdout)
    if found is None:
        raise ExportError(f"cuobjdump does not read the compiled kernel: {told.stderr.strip() or told.stdout.strip()}")
    registers, stack, shared, local = (int(value) for value in found.groups())
    return registers, stack, shared, local

"""The kernels of a bundle on one GPU: found by name, types and constants, loaded once, launched by argument name."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import BundleError, DeviceError, InputError
from edgekit.runtimes.cubins.driver import ALIGNMENT, DeviceArray, Gpu
from edgekit.runtimes.cubins.elf import read_cubin
from edgekit.runtimes.cubins.table import POINTER_BYTES, TABLE, Argument, Cubin, read_table, runs_on

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

WARP = 32
Number = int | float
_NUMBERS: dict[str, type] = {
    "i1": ctypes.c_bool, "i8": ctypes.c_int8, "u8": ctypes.c_uint8, "i16": ctypes.c_int16, "u16": ctypes.c_uint16,
    "i32": ctypes.c_int32, "u32": ctypes.c_uint32, "i64": ctypes.c_int64, "fp32": ctypes.c_float,
}  # fmt: skip


@dataclass(frozen=True)
class Function:
    """One row of the table, loaded. Calling it launches; it returns before the GPU is done."""

    cubin: Cubin
    gpu: Gpu
    handle: ctypes.c_void_p
    scratch_pointers: int

    def __call__(self, grid: tuple[int, ...], arguments: Mapping[str, DeviceArray | Number]) -> None:
        """`grid`: programs along one to three axes. Raises InputError for arguments that are not those of the table."""
        wanted = [argument.name for argument in self.cubin.arguments]
        if sorted(arguments) != sorted(wanted):
            raise InputError(f"{self.cubin.kernel} got {sorted(arguments)}, takes {wanted}")
        if not 1 <= len(grid) <= 3 or min(grid) < 1:
            raise InputError(f"a grid of {grid}, allowed one to three sizes above zero")
        values = [_value(self.cubin.kernel, one, arguments[one.name]) for one in self.cubin.arguments]
        values += [ctypes.c_uint64(0) for _ in range(self.scratch_pointers)]
        x, y, z = (*grid, 1, 1)[:3]
        self.gpu.launch(self.handle, (x, y, z), self.cubin.warps * WARP, self.cubin.shared_bytes, values)


class KernelSet:
    """What `bundle` packs for `gpu`. The bundle must stay open as long as new kernels are asked for."""

    def __init__(self, bundle: Bundle, gpu: Gpu) -> None:
        """Raises DeviceError where the bundle holds no kernels, or none for this GPU; BundleError where damaged."""
        table = read_table(bundle)
        hint = f"edgekit kernels pack {bundle.path} --arch {gpu.arch} -o NEW.edgekit"
        if table is None:
            raise DeviceError(f"{bundle.path} holds no compiled kernels", hint=hint)
        fitting = [arch for arch in table.architectures if runs_on(arch, gpu.arch)]
        if not fitting:
            raise DeviceError(
                f"no kernel for {gpu.name}: it needs {gpu.arch}, {bundle.path} has {', '.join(table.architectures)}",
                hint=hint,
            )
        # Its own architecture before an older one whose code it can run.
        self.arch = max(fitting, key=lambda arch: int(arch[3:]))
        self.gpu = gpu
        self.cubins = tuple(one for one in table.kernels if one.arch == self.arch)
        self._bundle, self._scratch = bundle, table.scratch_pointers
        self._loaded: dict[int, Function] = {}

    def find(
        self, kernel: str, types: Mapping[str, str] | None = None, constants: Mapping[str, int] | None = None
    ) -> Function:
        """The first of `kernel` whose arguments have `types` (such as {"dense": "*bf16"}) and whose constants are
        `constants`, as far as they are given. Raises DeviceError where none was packed."""
        named = [(place, one) for place, one in enumerate(self.cubins) if one.kernel == kernel]
        for place, one in named:
            given = {argument.name: argument.type for argument in one.arguments}
            if _agrees(types or {}, given) and _agrees(constants or {}, one.constants):
                return self._load(place)
        there = "; ".join(sorted({_describe(one, types or {}, constants or {}) for _, one in named}))
        raise DeviceError(
            f"no kernel {kernel!r} with {_words({**(types or {}), **(constants or {})})} was packed for {self.arch}",
            hint=f"packed: {there}" if there else f"packed: {', '.join(sorted({one.kernel for one in self.cubins}))}",
        )

    def _load(self, place: int) -> Function:
        if place not in self._loaded:
            one = self.cubins[place]
            code = self._bundle.asset_path(one.file).read_bytes()
            check_code(one, code, self._scratch, f"{one.file} of {self._bundle.path}")
            handle = self.gpu.load_function(code, one.symbol, one.shared_bytes)
            self._loaded[place] = Function(one, self.gpu, handle, self._scratch)
        return self._loaded[place]


def check_code(one: Cubin, code: bytes, scratch_pointers: int, origin: str) -> None:
    """Raises BundleError where the machine code is not what the table says: architecture, name, parameters, warps."""
    machine = read_cubin(code, origin)
    if machine.arch != one.arch:
        raise BundleError(f"{origin} is code for {machine.arch}, {TABLE} says {one.arch}", hint=_HINT)
    if one.symbol not in machine.functions:
        raise BundleError(f"{origin} holds {sorted(machine.functions)}, {TABLE} says {one.symbol!r}", hint=_HINT)
    real = machine.functions[one.symbol]
    sizes = (*(argument.size_bytes for argument in one.arguments), *(POINTER_BYTES,) * scratch_pointers)
    if real.sizes != sizes:
        raise BundleError(f"{origin} takes parameters of {real.sizes} bytes, {TABLE} says {sizes}", hint=_HINT)
    if real.threads not in (None, one.warps * WARP):
        raise BundleError(f"{origin} wants {real.threads} threads, {TABLE} says {one.warps * WARP}", hint=_HINT)


_HINT = "pack the kernels again: `edgekit kernels pack`"


def _value(kernel: str, argument: Argument, given: DeviceArray | Number) -> object:
    """What the driver copies into the parameter."""
    if argument.type[0] == "*":
        if not isinstance(given, DeviceArray) or given.kind != argument.type[1:]:
            got = f"{given.kind} on the GPU" if isinstance(given, DeviceArray) else type(given).__name__
            raise InputError(f"{argument.name} of {kernel} is {got}, takes {argument.type[1:]} on the GPU")
        if given.address % ALIGNMENT:
            raise InputError(f"{argument.name} of {kernel} begins at {given.address}, allowed multiples of {ALIGNMENT}")
        return ctypes.c_uint64(given.address)
    kind = _NUMBERS.get(argument.type)
    if kind is None or isinstance(given, DeviceArray):
        raise InputError(f"{argument.name} of {kernel} is {type(given).__name__}, takes {argument.type}")
    if argument.type == "fp32":
        return kind(float(given))
    if not isinstance(given, (int, np.integer)) or kind(int(given)).value != int(given):
        raise InputError(f"{argument.name} of {kernel} is {given!r}, which {argument.type} does not hold")
    return kind(int(given))


def _agrees(wanted: Mapping[str, object], given: Mapping[str, object]) -> bool:
    return all(given.get(name) == value for name, value in wanted.items())


def _words(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "any types"


def _describe(one: Cubin, types: Mapping[str, str], constants: Mapping[str, int]) -> str:
    given: dict[str, object] = {argument.name: argument.type for argument in one.arguments}
    return _words({name: {**given, **one.constants}.get(name) for name in (*types, *constants)} or one.constants)

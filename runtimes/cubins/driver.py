"""A GPU through CUDA's driver library, by ctypes: memory, modules, launches, and errors in words.

Of the driver API only what a launch needs. Every call runs in the primary context of the device, which other libraries
in the process share; a thread that comes anew enters it first.
"""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from edgekit.errors import DeviceError, InputError, SessionError
from edgekit.runtimes.cubins.table import SIZES

LIBRARY = "libcuda.so.1"
LIBRARY_VARIABLE = "EDGEKIT_CUDA_DRIVER"  # of the environment: the driver's path where the system does not find it
SHARED_WITHOUT_ASKING = 48 * 1024
ALIGNMENT = 16  # of tensors: compiled kernels load 16 bytes at a time
NUMPY_TYPES = {
    "i1": np.bool_, "i8": np.int8, "u8": np.uint8, "i16": np.int16, "u16": np.uint16, "fp16": np.float16,
    "bf16": np.uint16, "i32": np.int32, "u32": np.uint32, "fp32": np.float32, "i64": np.int64,
}  # fmt: skip
_KINDS = {np.dtype(kind): name for name, kind in NUMPY_TYPES.items() if name not in ("bf16", "i1")}

# CUdevice_attribute and CUfunction_attribute, by number.
_MAJOR, _MINOR, _SHARED_OPTED_IN, _INTEGRATED = 75, 76, 97, 18
_FUNCTION_SHARED, _FUNCTION_DYNAMIC_SHARED = 1, 8
_OUT_OF_MEMORY = 2

_SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (c_void_p, c_void_p),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuModuleLoadData": (c_void_p, c_char_p),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (c_void_p, c_void_p, c_char_p),
    "cuFuncGetAttribute": (c_void_p, c_int, c_void_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, c_void_p, c_void_p),
    "cuGetErrorName": (c_int, c_void_p),
    "cuGetErrorString": (c_int, c_void_p),
}


class Driver:
    """The library itself. A call that fails raises SessionError with CUDA's own name and words."""

    def __init__(self, library: str | None = None) -> None:
        """`library`: its path or name, otherwise what LIBRARY_VARIABLE says, or LIBRARY. Raises DeviceError where
        there is no driver."""
        try:
            self._library = ctypes.CDLL(library or os.environ.get(LIBRARY_VARIABLE) or LIBRARY)
            for name, arguments in _SIGNATURES.items():
                function = getattr(self._library, name)
                function.argtypes, function.restype = arguments, c_int
        except (OSError, AttributeError) as error:
            raise DeviceError(
                f"no CUDA driver is here: {error}",
                hint="compiled kernels need an NVIDIA GPU and its driver; without them features are decoded in numpy",
            ) from error

    def call(self, name: str, *arguments: object) -> None:
        status = self.status(name, *arguments)
        if status:
            raise SessionError(f"{name}: {self.explain(status)}", hint=_HINT)

    def status(self, name: str, *arguments: object) -> int:
        return int(getattr(self._library, name)(*arguments))

    def explain(self, status: int) -> str:
        """Such as `CUDA_ERROR_NO_DEVICE (100), no CUDA-capable device is detected`."""
        words = []
        for question in ("cuGetErrorName", "cuGetErrorString"):
            answer = c_char_p()
            known = not self.status(question, status, byref(answer)) and answer.value
            words.append(answer.value.decode(errors="replace") if known and answer.value else "unknown")
        return f"{words[0]} ({status}), {words[1]}"


_HINT = "see that the GPU's driver fits it (nvidia-smi, on a Jetson tegrastats), and that no other program fills it"


@dataclass(frozen=True)
class DeviceArray:
    """Memory of a GPU. `kind`: Triton's name of the type; bf16 comes to numpy as the uint16 of its bits."""

    address: int
    kind: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.kind]


class Gpu:
    """Made by `open_gpu`. Freeing is by `free` or `close`; use it in `with`."""

    def __init__(self, driver: Driver, device: int, ordinal: int) -> None:
        self.driver, self.ordinal = driver, ordinal
        self._device = device
        label = ctypes.create_string_buffer(128)
        driver.call("cuDeviceGetName", label, len(label), device)
        self.name = label.value.decode(errors="replace")
        self.arch = f"sm_{self._attribute(_MAJOR)}{self._attribute(_MINOR)}"
        self.shared_bytes = self._attribute(_SHARED_OPTED_IN)
        self.integrated = bool(self._attribute(_INTEGRATED))
        self._context = c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", byref(self._context), device)
        self._memory: set[int] = set()
        self._modules: list[c_void_p] = []
        self._release = weakref.finalize(self, _close, driver, device, self._context, self._memory, self._modules)

    def _attribute(self, number: int) -> int:
        value = c_int()
        self.driver.call("cuDeviceGetAttribute", byref(value), number, self._device)
        return value.value

    def _call(self, name: str, *arguments: object) -> None:
        self._enter()
        self.driver.call(name, *arguments)

    def _enter(self) -> None:
        if not self._release.alive:
            raise SessionError(f"the GPU {self.name} was closed", hint="use it inside its `with`")
        self.driver.call("cuCtxSetCurrent", self._context)

    def allocate(self, shape: Sequence[int], kind: str) -> DeviceArray:
        """Uninitialised. Raises DeviceError where the memory of the GPU does not suffice."""
        made = DeviceArray(0, kind, tuple(shape))
        self._enter()
        address = c_uint64()
        status = self.driver.status("cuMemAlloc_v2", byref(address), max(made.nbytes, 1))
        if status == _OUT_OF_MEMORY:
            free, total = c_size_t(), c_size_t()
            self.driver.call("cuMemGetInfo_v2", byref(free), byref(total))
            raise DeviceError(
                f"{self.name} has {free.value} of {total.value} bytes free, {made.nbytes} are needed",
                hint="decode fewer features at once, or free the memory of other programs",
            )
        if status:
            raise SessionError(f"cuMemAlloc_v2: {self.driver.explain(status)}", hint=_HINT)
        self._memory.add(address.value)
        return DeviceArray(address.value, kind, made.shape)

    def upload(self, array: np.ndarray, kind: str | None = None) -> DeviceArray:
        """A copy on the GPU; `kind` only where numpy has no name for the type (bf16 in a uint16 array)."""
        known = kind or _KINDS.get(array.dtype)
        if known is None or np.dtype(NUMPY_TYPES[known]) != array.dtype:
            raise InputError(f"an array of {array.dtype} as {known}, allowed: {', '.join(map(str, _KINDS))}")
        made = self.allocate(array.shape, known)
        if made.nbytes:
            whole = np.ascontiguousarray(array)
            try:
                self._call("cuMemcpyHtoD_v2", made.address, whole.ctypes.data, made.nbytes)
            except SessionError:
                self.free(made)
                raise
        return made

    def download(self, array: DeviceArray) -> np.ndarray:
        """Waits for what was launched before."""
        result: np.ndarray = np.empty(array.shape, NUMPY_TYPES[array.kind])
        self._call("cuCtxSynchronize")
        if array.nbytes:
            self._call("cuMemcpyDtoH_v2", result.ctypes.data, array.address, array.nbytes)
        return result

    def free(self, *arrays: DeviceArray) -> None:
        for array in arrays:
            self._memory.discard(array.address)
            self._call("cuMemFree_v2", array.address)

    def load_function(self, cubin: bytes, symbol: str, shared_bytes: int) -> c_void_p:
        """A function that may use `shared_bytes`. Raises DeviceError where this GPU has less for a program."""
        module, function, fixed = c_void_p(), c_void_p(), c_int()
        self._call("cuModuleLoadData", byref(module), cubin)
        self._modules.append(module)
        self._call("cuModuleGetFunction", byref(function), module, symbol.encode())
        self._call("cuFuncGetAttribute", byref(fixed), _FUNCTION_SHARED, function)
        if fixed.value + shared_bytes > self.shared_bytes:
            raise DeviceError(
                f"{symbol} takes {fixed.value + shared_bytes} bytes of shared memory, {self.name} has "
                f"{self.shared_bytes} for a program",
                hint="pack this kernel with smaller tiles",
            )
        if shared_bytes > SHARED_WITHOUT_ASKING:
            self._call("cuFuncSetAttribute", function, _FUNCTION_DYNAMIC_SHARED, shared_bytes)
        return function

    def launch(
        self, function: c_void_p, grid: tuple[int, int, int], threads: int, shared_bytes: int, values: Sequence[object]
    ) -> None:
        """`values`: a ctypes object for each parameter of the function, in order. Returns before it has run."""
        places = (c_void_p * len(values))(*(ctypes.addressof(value) for value in values))  # type: ignore[arg-type]
        self._call("cuLaunchKernel", function, *grid, threads, 1, 1, shared_bytes, None, places, None)

    def synchronize(self) -> None:
        """Waits; raises SessionError for what failed on the GPU meanwhile."""
        self._call("cuCtxSynchronize")

    def close(self) -> None:
        self._release()

    def __enter__(self) -> Gpu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_gpu(ordinal: int = 0, library: str | None = None) -> Gpu:
    """The GPU of that number; `library` as for Driver. Raises DeviceError where there is no driver or not that GPU."""
    driver = Driver(library)
    count, device = c_int(), c_int()
    status = driver.status("cuInit", 0) or driver.status("cuDeviceGetCount", byref(count))
    if status or not 0 <= ordinal < count.value:
        why = driver.explain(status) if status else f"{count.value} GPUs, asked for number {ordinal}"
        raise DeviceError(f"no GPU to run kernels on: {why}", hint=_HINT)
    driver.call("cuDeviceGet", byref(device), ordinal)
    return Gpu(driver, device.value, ordinal)


def _close(driver: Driver, device: int, context: c_void_p, memory: set[int], modules: list[c_void_p]) -> None:
    driver.status("cuCtxSetCurrent", context)
    for address in memory:
        driver.status("cuMemFree_v2", address)
    for module in modules:
        driver.status("cuModuleUnload", module)
    driver.status("cuDevicePrimaryCtxRelease_v2", device)

"""The driver through ctypes: memory there and back, and errors that say what is missing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgekit.errors import DeviceError, InputError, SessionError
from edgekit.runtimes.cubins import open_gpu

from .conftest import Emulator


def test_neither_torch_nor_triton_is_loaded() -> None:
    code = "import sys, edgekit.runtimes.cubins; print({'torch', 'triton', 'PIL'} & sys.modules.keys() or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "none"


def test_without_a_driver_the_error_says_so() -> None:
    with pytest.raises(DeviceError, match=r"no CUDA driver is here: libnone.so.*\n.*decoded in numpy"):
        open_gpu(library="libnone.so")


def test_a_library_that_is_no_driver_is_told() -> None:
    with pytest.raises(DeviceError, match="cuInit"):
        open_gpu(library="libm.so.6")


def test_without_a_gpu_or_with_too_few_the_error_says_how_many(emulator: Emulator) -> None:
    emulator.device(gpus=0)
    with pytest.raises(DeviceError, match=r"CUDA_ERROR_NO_DEVICE \(100\), no CUDA-capable device is detected"):
        open_gpu(library=emulator.path)
    emulator.device(gpus=2)
    with pytest.raises(DeviceError, match="2 GPUs, asked for number 2"):
        open_gpu(2, emulator.path)
    with open_gpu(1, emulator.path) as gpu:
        assert gpu.name == "emulated Orin 1" and gpu.arch == "sm_87" and gpu.integrated
        assert gpu.shared_bytes == 163 * 1024


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "float16", "int32", "float32", "int64"])
def test_arrays_come_back_as_they_went(emulator: Emulator, dtype: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) - (0 if dtype == "uint8" else 9)).astype(dtype)
    with open_gpu(library=emulator.path) as gpu:
        for one in (array, array.T, array[:, ::2], array[:0]):
            there = gpu.upload(one)
            assert there.shape == one.shape and there.nbytes == one.nbytes and there.address % 256 == 0
            back = gpu.download(there)
            assert back.dtype == one.dtype and np.array_equal(back, one)
            gpu.free(there)
        assert emulator.alive == (1, 0, 0)


def test_types_that_no_kernel_takes_are_refused(emulator: Emulator) -> None:
    with open_gpu(library=emulator.path) as gpu:
        with pytest.raises(InputError, match="float64"):
            gpu.upload(np.zeros(3))
        with pytest.raises(InputError, match="float32 as bf16"):
            gpu.upload(np.zeros(3, np.float32), "bf16")
        assert gpu.upload(np.zeros(3, np.uint16), "bf16").kind == "bf16"


def test_too_little_memory_says_need_and_have(emulator: Emulator) -> None:
    emulator.device(memory_bytes=1000)
    with open_gpu(library=emulator.path) as gpu:
        gpu.allocate((100,), "fp32")
        with pytest.raises(DeviceError, match="emulated Orin 0 has 600 of 1000 bytes free, 4000 are needed"):
            gpu.allocate((1000,), "fp32")


def test_everything_is_given_back_at_the_end_and_nothing_works_after_it(emulator: Emulator) -> None:
    gpu = open_gpu(library=emulator.path)
    gpu.allocate((3,), "i8")
    assert emulator.alive == (1, 0, 1)
    gpu.close()
    gpu.close()
    assert emulator.alive == (0, 0, 0)
    with pytest.raises(SessionError, match="was closed"):
        gpu.allocate((3,), "i8")
    dropped = open_gpu(library=emulator.path)
    dropped.allocate((3,), "i8")
    del dropped
    assert emulator.alive == (0, 0, 0)


def test_a_failure_carries_cudas_name_and_number(emulator: Emulator) -> None:
    with open_gpu(library=emulator.path) as gpu:
        emulator.fail("cuMemcpyHtoD_v2", 700)
        with pytest.raises(SessionError, match=r"cuMemcpyHtoD_v2: CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
            gpu.upload(np.zeros(3, np.int8))
        assert emulator.alive == (1, 0, 0)
        emulator.fail("cuCtxSynchronize", 999)
        with pytest.raises(SessionError, match=r"unknown \(999\), unknown"):
            gpu.synchronize()

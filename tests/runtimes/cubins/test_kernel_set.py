"""Finding, checking and launching packed kernels through the emulated driver."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import BundleError, DeviceError, InputError
from edgekit.runtimes.cubins import DeviceArray, Gpu, KernelSet, open_gpu
from edgekit.runtimes.cubins.kernel_set import check_code

from .conftest import BIG_SHARED, Emulator, plain_bundle

POINTS, CENTRES = 70, 9


def arguments(gpu: Gpu) -> dict[str, DeviceArray | float]:
    """Of a launch of k-means' assignment."""
    return {
        "points": gpu.upload(np.zeros((POINTS, 64), np.float32)),
        "centres": gpu.upload(np.zeros((CENTRES, 64), np.float32)),
        "norms": gpu.upload(np.zeros(CENTRES, np.float32)),
        "nearest": gpu.upload(np.zeros(POINTS, np.int32)),
        "count": POINTS,
        "clusters": CENTRES,
    }


def test_a_gpu_of_another_architecture_is_told_what_it_needs_and_what_there_is(
    emulator: Emulator, packed: Bundle, tmp_path: Path
) -> None:
    emulator.device("sm_72")
    with open_gpu(library=emulator.path) as gpu:
        with pytest.raises(
            DeviceError, match=r"it needs sm_72, .* has sm_87, sm_80, sm_100\n.*kernels pack .* --arch sm_72"
        ):
            KernelSet(packed, gpu)
        with (
            Bundle.open(plain_bundle(tmp_path / "net.edgekit")) as plain,
            pytest.raises(DeviceError, match="holds no compiled kernels"),
        ):
            KernelSet(plain, gpu)


def test_the_code_of_the_gpus_own_architecture_is_taken(emulator: Emulator, packed: Bundle) -> None:
    for device, wanted in (("sm_87", "sm_87"), ("sm_80", "sm_80"), ("sm_86", "sm_80")):
        emulator.device(device)
        with open_gpu(library=emulator.path) as gpu:
            kernels = KernelSet(packed, gpu)
            assert {one.arch for one in kernels.cubins} == {wanted}
            if device == wanted:  # the emulated driver takes none but its own
                assert kernels.find(BIG_SHARED).cubin.arch == wanted


def test_arguments_go_by_name_in_the_order_of_the_code(emulator: Emulator, packed: Bundle) -> None:
    with open_gpu(library=emulator.path) as gpu:
        given = arguments(gpu)
        function = KernelSet(packed, gpu).find(BIG_SHARED, {"points": "*fp32"}, {"BLOCK_N": 64})
        function((2,), dict(reversed(given.items())))
        gpu.synchronize()
    (launch,) = emulator.launches
    assert launch.grid == (2, 1, 1) and launch.threads == 128 and launch.shared_bytes == function.cubin.shared_bytes
    pointers = [given[name].address for name in ("points", "centres", "norms", "nearest")]  # type: ignore[union-attr]
    assert launch.parameters[:32] == np.array(pointers, np.uint64).tobytes()
    assert launch.parameters[32:40] == np.array([POINTS, CENTRES], np.int32).tobytes()
    assert launch.parameters[40:] == bytes(16)


def test_more_shared_memory_than_is_free_for_all_is_asked_for(emulator: Emulator, packed: Bundle) -> None:
    with open_gpu(library=emulator.path) as gpu:
        function = KernelSet(packed, gpu).find(BIG_SHARED, constants={"BLOCK_N": 128})
        assert function.cubin.shared_bytes > 48 * 1024
        function((1,), arguments(gpu))
    assert emulator.launches[0].shared_bytes == function.cubin.shared_bytes
    emulator.device(shared_bytes=64 * 1024)
    with (
        open_gpu(library=emulator.path) as gpu,
        pytest.raises(DeviceError, match="takes 98304 bytes of shared memory, emulated Orin 0 has 65536"),
    ):
        KernelSet(packed, gpu).find(BIG_SHARED, constants={"BLOCK_N": 128})


def test_a_function_is_loaded_once_and_launched_from_any_thread(emulator: Emulator, packed: Bundle) -> None:
    with open_gpu(library=emulator.path) as gpu:
        kernels = KernelSet(packed, gpu)
        function, given = kernels.find(BIG_SHARED), arguments(gpu)
        assert kernels.find(BIG_SHARED) is function and emulator.alive[1] == 1
        thread = threading.Thread(target=lambda: function((1,), given))
        thread.start()
        thread.join()
    assert len(emulator.launches) == 1


def test_wrong_arguments_are_told_with_what_is_taken(emulator: Emulator, packed: Bundle) -> None:
    with open_gpu(library=emulator.path) as gpu:
        function, good = KernelSet(packed, gpu).find(BIG_SHARED), arguments(gpu)
        points = good["points"]
        assert isinstance(points, DeviceArray)
        cases: list[tuple[str, tuple[int, ...], dict[str, object]]] = [
            ("takes \\['points'", (1,), {"points": points}),
            ("points of kmeans-assign is i32 on the GPU, takes fp32", (1,), {**good, "points": good["nearest"]}),
            ("points of kmeans-assign is ndarray", (1,), {**good, "points": np.zeros(3, np.float32)}),
            ("allowed multiples of 16", (1,), {**good, "points": DeviceArray(points.address + 4, "fp32", (1,))}),
            ("count of kmeans-assign is 4294967296", (1,), {**good, "count": 1 << 32}),
            ("count of kmeans-assign is 1.5", (1,), {**good, "count": 1.5}),
            ("count of kmeans-assign is DeviceArray, takes i32", (1,), {**good, "count": points}),
            ("a grid of \\(0,\\)", (0,), good),
            ("a grid of \\(1, 1, 1, 1\\)", (1, 1, 1, 1), good),
        ]
        for message, grid, given in cases:
            with pytest.raises(InputError, match=message):
                function(grid, given)  # type: ignore[arg-type]
    assert emulator.launches == []


def test_what_was_not_packed_is_told_with_what_was(emulator: Emulator, packed: Bundle) -> None:
    with open_gpu(library=emulator.path) as gpu:
        kernels = KernelSet(packed, gpu)
        with pytest.raises(
            DeviceError,
            match=r"'rational' with any types .*\n.*packed: kmeans-assign, ragged-decode, ragged-dequantize",
        ):
            kernels.find("rational")
        with pytest.raises(DeviceError, match=r"points=\*bf16, WIDTH=9 .*\n.*packed: points=\*fp32, WIDTH=64"):
            kernels.find(BIG_SHARED, {"points": "*bf16"}, {"WIDTH": 9})


def test_code_that_is_not_what_the_table_says_is_refused(emulator: Emulator, packed: Bundle) -> None:
    with open_gpu(library=emulator.path) as gpu:
        kernels = KernelSet(packed, gpu)
        one = next(one for one in kernels.cubins if one.kernel == BIG_SHARED)
        code = packed.asset_path(one.file).read_bytes()
    check_code(one, code, 2, "x")
    cases = {
        "x is code for sm_87, kernels.json says sm_80": one.model_copy(update={"arch": "sm_80"}),
        "x holds \\['_assign_kernel'\\], kernels.json says '_other'": one.model_copy(update={"symbol": "_other"}),
        "x takes parameters of": one.model_copy(update={"arguments": one.arguments[1:]}),
        "threads, kernels.json says 1024": one.model_copy(update={"warps": 32}),
    }
    for message, wrong in cases.items():
        with pytest.raises(BundleError, match=message):
            check_code(wrong, code, 2, "x")
    with pytest.raises(BundleError, match="x takes parameters of"):
        check_code(one, code, 0, "x")

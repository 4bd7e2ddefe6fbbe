"""`edgekit devices probe`: this machine's profile, measured in well under 30 s. No torch, no onnx package."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from edgekit.devices.calibration import reference_calibration
from edgekit.devices.device import Device, Unit
from edgekit.devices.device_toml import to_toml as to_toml
from edgekit.devices.kernels import best_seconds, measure_dispatch_us, measure_rates
from edgekit.devices.latency import peak_gflops
from edgekit.devices.machine import Machine, this_machine
from edgekit.errors import DeviceError
from edgekit.progress import Progress, silent

MEASURED = "measured by edgekit devices probe"
# The one whose models and kernels were both measured: it says how much slower kernels are inside a model.
MEASURED_FAMILY = "cpu-x86_64"
COPY_BYTES = 64 * 1024**2
COPY_SECONDS = 1.0
GUESSED_CLOCK_GHZ = 1.5
GUESSED_DISPATCH_US = 10.0
# Kernels that the probe has no model for move with the one that they resemble.
RESEMBLES = {"attention/fp32": "matmul/fp32", "elementwise/int8": "elementwise/fp32", "other/fp32": "elementwise/fp32"}

# format -> (packages, one of which runs it; precisions its CPU kernels have, fastest first)
RUNTIMES = {
    "onnx": (
        ("onnxruntime",),
        ("int8", "int8-dynamic", "fp32", "int8-weight-only", "int4-weight-only", "w6a6", "w4a8"),
    ),
    "litert": (("ai_edge_litert", "tflite_runtime"), ("int8", "int8-dynamic", "fp32", "int8-weight-only")),
    "executorch": (("executorch",), ("int8", "int8-dynamic", "int4-weight-only", "fp32")),
    "inductor": (("torch",), ("fp32",)),
}


def probe(threads: int | None = None, progress: Progress = silent) -> Device:
    """`threads` limits what is measured and described; None takes every core that this process may use.

    Without onnxruntime only numpy's matrix product is timed. Raises DeviceError for threads outside 1..cores.
    """
    machine = this_machine()
    if threads is not None and not 1 <= threads <= machine.cores:
        raise DeviceError(f"threads {threads}, allowed 1 to {machine.cores}")
    cores = threads or machine.cores
    progress("copy bandwidth", 0, 3)
    single, together = measure_copy_gbps(1), measure_copy_gbps(cores)
    progress("kernels", 1, 3)
    rates, runtime = _rates()
    progress("dispatch", 2, 3)
    dispatched = find_spec("onnxruntime") is not None
    clock = machine.clock_ghz or GUESSED_CLOCK_GHZ
    ratio = reference_calibration(MEASURED_FAMILY).dispatch_ratio
    unit = Unit(
        name="cpu",
        cores=cores,
        clock_ghz=round(clock, 3),
        isa=machine.isa,
        bandwidth_gbps=round(max(single, together), 2),
        dispatch_us=round(measure_dispatch_us() * ratio, 3) if dispatched else GUESSED_DISPATCH_US,
        peak_gflops={name: round(value, 1) for name, value in derive_peaks(machine.isa, cores, clock).items()},
        sparse_gflops={},
        single_core_bandwidth_gbps=round(single, 2),
    )
    progress("done", 3, 3)
    return _device(machine, unit, rates, runtime, dispatched)


def _device(machine: Machine, unit: Unit, rates: dict[str, float], runtime: str, dispatched: bool) -> Device:
    sources = {
        "memory_bytes": f"{MEASURED} (operating system)",
        "units.cpu.cores": f"{MEASURED} (operating system)",
        "units.cpu.bandwidth_gbps": f"{MEASURED} (copy of {COPY_BYTES // 1024**2} MiB, numpy)",
        "units.cpu.single_core_bandwidth_gbps": f"{MEASURED} (copy of {COPY_BYTES // 1024**2} MiB, numpy)",
        "units.cpu.peak_gflops": "derived: cores x clock x floating-point operations a cycle of the instruction set",
        "efficiency": f"{MEASURED} ({runtime}, one thread)",
    }
    estimated = ["nominal_bandwidth_gbps"]
    if dispatched:
        sources["units.cpu.dispatch_us"] = f"{MEASURED} ({runtime})"
    else:
        estimated.append("units.cpu.dispatch_us")
    if machine.clock_ghz:
        sources["units.cpu.clock_ghz"] = f"{MEASURED} (operating system)"
    else:
        estimated += ["units.cpu.clock_ghz", "units.cpu.peak_gflops"]
        del sources["units.cpu.peak_gflops"]
    return Device(
        name="this-machine",
        title=f"{machine.cpu}, {unit.cores} core{'' if unit.cores == 1 else 's'}",
        arch=machine.arch,
        memory_bytes=machine.memory_bytes,
        nominal_bandwidth_gbps=unit.bandwidth_gbps,
        units=(unit,),
        formats={
            format: ("cpu", precisions)
            for format, (packages, precisions) in RUNTIMES.items()
            if any(find_spec(package) is not None for package in packages)
        },
        power_mode="as found",
        power_w={},
        efficiency={f"cpu/{key}": round(value, 4) for key, value in scale_efficiency(rates, unit).items()},
        sources=sources,
        estimated=tuple(estimated),
    )


def scale_efficiency(rates: dict[str, float], unit: Unit) -> dict[str, float]:
    """Kernel rates alone on this machine (GFLOP/s, one thread) -> efficiencies of kernels inside models.

    The reference machine's models and kernels give the ratio between the two. A rate of numpy's product alone
    ("matmul/fp32" and nothing else) stands for every float kernel.
    """
    reference = reference_calibration(MEASURED_FAMILY)
    alone = {key: rate / peak_gflops(unit, key.partition("/")[2], 1) for key, rate in rates.items()}
    ratio = {key: share / reference.kernels[key] for key, share in alone.items()}
    if set(rates) == {"matmul/fp32"}:
        ratio = {key: ratio["matmul/fp32"] for key in reference.kernels if key.endswith("/fp32")}
    ratio |= {key: ratio[known] for key, known in RESEMBLES.items() if known in ratio}
    return {key: reference.values[key] * factor for key, factor in ratio.items() if key in reference.values}


def derive_peaks(isa: tuple[str, ...], cores: int, clock_ghz: float) -> dict[str, float]:
    """GFLOP/s by precision: cores x clock x operations a cycle (two multiply-add pipes, as most cores have)."""
    if "avx512f" in isa or "avx2" in isa:
        flops = 32
        fused = {"avx512_vnni", "avx_vnni", "amx_int8"} & set(isa)
        cycle = {"fp32": flops, "int8": flops * (4 if fused else 2)}
    elif "dotprod" in isa:
        cycle = {"fp32": 16, "int8": 64}
    else:
        cycle = {"fp32": 8, "int8": 16}
    if "fp16" in isa:
        cycle["fp16"] = 2 * cycle["fp32"]
    return {precision: cores * clock_ghz * operations for precision, operations in cycle.items()}


def measure_copy_gbps(threads: int) -> float:
    """Bytes copied a second (counted once, read and written once each), each thread on a part of its own."""
    source = np.ones(COPY_BYTES // 8)
    target = np.empty_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> object:
            # numpy lets go of the interpreter's lock while it copies.
            return list(pool.map(lambda part: np.copyto(*part), parts))

        return COPY_BYTES / best_seconds(copy, COPY_SECONDS) / 1e9


def measure_numpy_gflops() -> float:
    """fp32 matrix product in numpy's BLAS, at the threads that the environment gives it (OMP_NUM_THREADS)."""
    left, right = np.ones((196, 384), np.float32), np.ones((384, 384), np.float32)
    product: Callable[[], object] = lambda: left @ right  # noqa: E731 - a timed expression
    return 2.0 * 196 * 384 * 384 / best_seconds(product, 0.5) / 1e9


def _rates() -> tuple[dict[str, float], str]:
    """Rates by "kind/precision", and the runtime that reached them."""
    if find_spec("onnxruntime") is None:
        return {"matmul/fp32": measure_numpy_gflops()}, f"numpy {np.__version__}"
    return measure_rates(1), f"onnxruntime {version('onnxruntime')}"

"""Latency before measuring: a roofline per segment, scaled by what kernels reach, plus the cost of each dispatch.

    t = max(flops / (peak x efficiency), bytes / (bandwidth x efficiency)) + dispatches x dispatch

(Williams, Waterman, Patterson: Roofline, CACM 2009.) Efficiencies come from the device's own profile where a probe
measured them, else from the reference calibration; the bar around a prediction is the error that each of the two
was found to leave. Pure Python: the run side plans with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgekit.devices.calibration import Calibration, reference_calibration
from edgekit.devices.device import Device, Unit
from edgekit.devices.segment import Segment
from edgekit.errors import DeviceError

Bound = Literal["compute", "memory", "dispatch"]

# One more thread adds 1 / (1 + 0.086 (n - 1)) of a core: EfficientNet-Lite0 in ONNX Runtime, 8.05 ms at one thread
# and 4.37 ms at two, on x86-64 with AVX512.
THREAD_LOSS = 0.086


@dataclass(frozen=True)
class SegmentTime:
    """`intensity`: flops per byte. `gflops`: the rate that `latency_ms` amounts to."""

    name: str
    kind: str
    precision: str
    latency_ms: float
    bound: Bound
    intensity: float
    gflops: float


@dataclass(frozen=True)
class Prediction:
    """`low_ms` to `high_ms` holds about 90 % of what was measured against such predictions.

    `calibrated`: the device's own profile holds measured efficiencies. `bound`: what most of the time waits for.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    by_segment: tuple[SegmentTime, ...]
    bound: Bound
    calibrated: bool

    def scaled(self, factor: float) -> Prediction:
        """Corrected by what a clock said of it."""
        return replace(
            self,
            latency_ms=factor * self.latency_ms,
            low_ms=factor * self.low_ms,
            high_ms=factor * self.high_ms,
            by_segment=tuple(
                replace(one, latency_ms=factor * one.latency_ms, gflops=one.gflops / factor) for one in self.by_segment
            ),
        )


@dataclass(frozen=True)
class Roof:
    """The roofline under which segments of `precision` run: intensity above `ridge` flops per byte is compute-bound."""

    precision: str
    peak_gflops: float
    bandwidth_gbps: float

    @property
    def ridge(self) -> float:
        return self.peak_gflops / self.bandwidth_gbps


def predict(segments: Sequence[Segment], device: Device, format: str, threads: int | None = None) -> Prediction:
    """`threads` None takes every core of the unit; a GPU ignores it.

    Raises DeviceError for a format that the device cannot run, or a number of threads below 1.
    """
    unit = device.unit_for(format)
    calibration = calibration_of(device, unit)
    factor = calibration.format_factor(device.arch, format, _leading_precision(segments)) if _is_cpu(unit) else 1.0
    times = tuple(_time(segment, unit, calibration, threads, factor) for segment in segments)
    total = sum(time.latency_ms for time in times)
    shares: dict[Bound, float] = {"compute": 0.0, "memory": 0.0, "dispatch": 0.0}
    for time in times:
        shares[time.bound] += time.latency_ms
    return Prediction(
        latency_ms=total,
        low_ms=total / calibration.spread,
        high_ms=total * calibration.spread,
        by_segment=times,
        bound=max(shares, key=lambda bound: shares[bound]),
        calibrated=calibration.measured,
    )


def calibration_of(device: Device, unit: Unit) -> Calibration:
    """The device's own efficiencies over the reference's, which fill what the profile leaves out."""
    own = {
        key.removeprefix(f"{unit.name}/"): value
        for key, value in device.efficiency.items()
        if key.startswith(f"{unit.name}/")
    }
    return reference_calibration(family_of(device, unit)).overlaid(own)


def family_of(device: Device, unit: Unit) -> str:
    """Which reference stands in for a device that was not measured; processors of other makes are taken as ARM's."""
    if not _is_cpu(unit):
        return "gpu"
    return "cpu-x86_64" if device.arch == "x86_64" else "cpu-aarch64"


def roofs(device: Device, format: str, threads: int | None = None) -> tuple[Roof, ...]:
    """One for each precision whose peak the unit's profile knows, nominal peaks under the sustained bandwidth."""
    unit = device.unit_for(format)
    bandwidth = bandwidth_gbps(unit, threads)
    return tuple(Roof(precision, peak_gflops(unit, precision, threads), bandwidth) for precision in unit.peak_gflops)


def peak_gflops(unit: Unit, precision: str, threads: int | None = None) -> float:
    """The dense peak at `threads`. Where the unit has no such arithmetic its kernels widen: int8 and fp16 -> fp32.

    A GPU with TF32 runs fp32 layers through it, as TensorRT does by default.
    """
    peaks = unit.peak_gflops
    if precision == "fp32" and "tf32" in peaks:
        precision = "tf32"
    if precision not in peaks and "fp32" not in peaks:
        raise DeviceError(
            f"the profile knows no peak of {unit.name} in {precision}", hint="add it to the unit's peak_gflops"
        )
    return peaks.get(precision, peaks.get("fp32", 0.0)) * _parallel(unit, threads) / _parallel(unit, unit.cores)


def bandwidth_gbps(unit: Unit, threads: int | None = None) -> float:
    """Sustained at `threads`: what one core gets, times threads, up to what all get together.

    A profile that does not say what one core gets is taken to saturate its memory with half of its cores.
    """
    if not _is_cpu(unit):
        return unit.bandwidth_gbps
    single = unit.single_core_bandwidth_gbps or min(1.0, 2.0 / unit.cores) * unit.bandwidth_gbps
    return min(unit.bandwidth_gbps, single * _threads(unit, threads))


def _time(segment: Segment, unit: Unit, calibration: Calibration, threads: int | None, factor: float) -> SegmentTime:
    efficiency = calibration.efficiency(segment.kind, segment.precision)
    compute_s = segment.flops / (peak_gflops(unit, segment.precision, threads) * efficiency * 1e9)
    memory = calibration.efficiency("memory", segment.precision)
    memory_s = segment.bytes_moved / (bandwidth_gbps(unit, threads) * memory * 1e9)
    dispatch_s = segment.dispatches * unit.dispatch_us * 1e-6
    seconds = max(compute_s, memory_s) * factor + dispatch_s
    bounds: dict[Bound, float] = {"compute": compute_s * factor, "memory": memory_s * factor, "dispatch": dispatch_s}
    return SegmentTime(
        name=segment.name,
        kind=segment.kind,
        precision=segment.precision,
        latency_ms=seconds * 1e3,
        bound=max(bounds, key=lambda bound: bounds[bound]),
        intensity=segment.flops / segment.bytes_moved if segment.bytes_moved else 0.0,
        gflops=segment.flops / seconds / 1e9 if seconds else 0.0,
    )


def _leading_precision(segments: Sequence[Segment]) -> str:
    """The precision in which most of the work is done."""
    work: dict[str, float] = {"fp32": 0.0}
    for segment in segments:
        work[segment.precision] = work.get(segment.precision, 0.0) + segment.flops
    return max(work, key=lambda precision: work[precision])


def _is_cpu(unit: Unit) -> bool:
    return unit.name == "cpu"


def _threads(unit: Unit, threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise DeviceError(f"threads {threads}, allowed 1 or more")
    return unit.cores if threads is None else min(threads, unit.cores)


def _parallel(unit: Unit, threads: int | None) -> float:
    """How many cores' worth of work `threads` do; 1 for a GPU, whose cores are not ours to choose."""
    if not _is_cpu(unit):
        return 1.0
    count = _threads(unit, threads)
    return count / (1 + THREAD_LOSS * (count - 1))

"""How long one worker takes for a batch of n rows.

    seconds(n) = fixed + max(compute x n, weights + activations x n) + spill x max(0, n - cached)

Weights cross memory once a batch, activations once a row, arithmetic is done for every row; whichever of the two takes
longer hides the other, and what is fixed (dispatches, the call) comes on top. Small batches wait for weights, large
ones for arithmetic; where activations outgrow the caches, further rows cost more. To see processor, accelerator and
memory of a machine as one bound instead of one after the other is after MoE-Lens (Yuan et al. 2025, arXiv:2504.09345);
to count access to memory beside arithmetic is after Kinetics (Sadhukhan et al. 2025, arXiv:2506.05333), which adds the
two up where we take the larger one; to fit the run time of an undisturbed machine from a few measurements, and to tell
contention and queues apart from it, is after Narayanan et al. 2023 (Cheaply Evaluating Inference Efficiency Metrics for
Autoregressive Transformer APIs, arXiv:2305.02440).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgekit.bundle.manifest import Part
from edgekit.devices.device import Device
from edgekit.devices.latency import bandwidth_gbps, predict
from edgekit.devices.segment import Segment
from edgekit.errors import DataError

# Layers whose kernels read weights; others only move and map what flows.
WEIGHTED_KINDS = ("conv", "depthwise", "matmul")
Bound = Literal["compute", "memory", "fixed"]


@dataclass(frozen=True)
class Service:
    """All times in seconds; `compute_s` and `activation_s` are of a row. `origin` says where they come from.

    `jitter`: what single runs took over the median of their batch size, a sample to draw from. `residuals`: of each
    batch size that was fitted, the relative error of the fit.
    """

    fixed_s: float
    compute_s: float
    weight_s: float = 0.0
    activation_s: float = 0.0
    spill_s: float = 0.0
    cached: float = 0.0
    origin: str = ""
    jitter: tuple[float, ...] = (1.0,)
    residuals: tuple[tuple[int, float], ...] = ()

    def seconds(self, rows: float) -> float:
        """At the median; 0 for no rows."""
        if rows == 0:
            return 0.0
        spilled = self.spill_s * max(0.0, rows - self.cached)
        return self.fixed_s + max(self.compute_s * rows, self.weight_s + self.activation_s * rows) + spilled

    def mean_seconds(self, rows: float) -> float:
        return self.seconds(rows) * float(np.mean(self.jitter))

    def bound(self, rows: int) -> Bound:
        """What most of the time of `rows` rows goes into."""
        compute, memory = self.compute_s * rows, self.weight_s + self.activation_s * rows
        spilled = self.spill_s * max(0.0, rows - self.cached)
        if self.fixed_s > max(compute, memory, spilled):
            return "fixed"
        return "compute" if compute >= max(memory, spilled) else "memory"

    @property
    def slope_s(self) -> float:
        """What a further row adds to a large batch."""
        return max(self.compute_s, self.activation_s) + self.spill_s

    def slowed(self, compute: float, memory: float) -> Service:
        """Where workers share cores (`compute` times as long) and bandwidth (`memory` times)."""
        return replace(
            self,
            fixed_s=compute * self.fixed_s,
            compute_s=compute * self.compute_s,
            weight_s=memory * self.weight_s,
            activation_s=memory * self.activation_s,
            spill_s=memory * self.spill_s,
        )

    def per_second(self, rows: int) -> float:
        """Rows a second of one worker that is never idle, in batches of `rows`."""
        return rows / self.mean_seconds(rows)


def fit_service(medians_s: Mapping[int, float], origin: str, jitter: Sequence[float] = (1.0,)) -> Service:
    """From measured batch sizes (two or more) and their median seconds.

    A bend is looked for between the sizes; it is taken only where it predicts each size better from the others (leave
    one out) than one straight line does. Errors count relatively.
    Raises DataError for fewer sizes or times of 0.
    """
    sizes = np.array(sorted(medians_s), float)
    times = np.array([medians_s[int(size)] for size in sizes])
    if len(sizes) < 2 or not (times > 0).all():
        raise DataError(f"{len(sizes)} batch sizes with times of {times.min():g} s, allowed 2 or more above 0")
    line = _line(sizes, times)
    best, score = line, _left_out_error(sizes, times, None)
    for knee in sizes[1:-1]:
        bent = _bent(sizes, times, knee)
        if bent is not None and (error := _left_out_error(sizes, times, knee)) < score:
            best, score = bent, error
    residuals = tuple((int(n), best.seconds(int(n)) / t - 1) for n, t in zip(sizes, times, strict=True))
    return replace(best, origin=origin, jitter=tuple(jitter), residuals=residuals)


def _line(sizes: np.ndarray, times: np.ndarray) -> Service:
    fixed, slope = _least_squares(np.stack([np.ones_like(sizes), sizes], 1), times)
    if fixed < 0:  # rows that get dearer: no fixed part can be told
        fixed, slope = 0.0, float(np.mean(times / sizes))
    return Service(float(fixed), float(max(slope, 0.0)))


def _bent(sizes: np.ndarray, times: np.ndarray, knee: float) -> Service | None:
    """Slower growth up to `knee`: weights hide arithmetic there, or, where what is there before the first row is too
    little for that, caches still hold the activations. None where the sizes do not look like that."""
    basis = np.stack([np.ones_like(sizes), sizes, np.maximum(0, sizes - knee)], 1)
    start, slope, more = (float(value) for value in _least_squares(basis, times))
    if start < 0:
        start, (slope, more) = 0.0, (float(value) for value in _least_squares(basis[:, 1:], times))
    if slope < -1e-6 * more or more <= 0:
        return None
    slope = max(slope, 0.0)
    if start >= more * knee:
        return Service(start - more * knee, slope + more, more * knee, slope)
    return Service(start, slope, spill_s=more, cached=knee)


def _least_squares(basis: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Of relative errors: each row of float [n, k] over its time."""
    found: np.ndarray = np.linalg.lstsq(basis / times[:, None], np.ones(len(times)), rcond=None)[0]
    return found


def _left_out_error(sizes: np.ndarray, times: np.ndarray, knee: float | None) -> float:
    """Mean squared relative error of each size predicted from the others; infinite where too few are left."""
    if len(sizes) < (3 if knee is None else 5):
        return float("inf")
    total = 0.0
    for index in range(len(sizes)):
        kept = np.arange(len(sizes)) != index
        model = _line(sizes[kept], times[kept]) if knee is None else _bent(sizes[kept], times[kept], knee)
        if model is None:
            return float("inf")
        total += (model.seconds(int(sizes[index])) / times[index] - 1) ** 2
    return total / len(sizes)


def predict_service(part: Part, device: Device, sizes: Sequence[int], threads: int | None = None) -> Service:
    """From the device's profile and the part's segments alone: nothing is run. A GPU is predicted in the same way.

    Raises DeviceError where the device cannot run the format, DataError for a part that tells no segments.
    """
    if not part.segments:
        raise DataError(f"the part {part.name} tells no costs", hint="measure it on this machine instead, without --on")
    medians = {
        rows: predict(batched(part, rows), device, part.format, threads).latency_ms / 1e3 for rows in sorted({*sizes})
    }
    unit = device.unit_for(part.format)
    return fit_service(medians, f"predicted for {device.name}, {unit.name}: nothing was run there")


def batched(part: Part, rows: int) -> list[Segment]:
    """The segments of `part` for a batch: arithmetic and activations times `rows`, weights once.

    The manifest tells bytes moved by segment and weights by file: the file's bytes are shared out over the layers that
    have weights, by the bytes that they move.
    """
    moved = sum(segment.bytes_moved for segment in part.segments if segment.kind in WEIGHTED_KINDS)
    share = min(1.0, part.size_bytes / moved) if moved else 0.0
    found = []
    for segment in part.segments:
        weights = share * segment.bytes_moved if segment.kind in WEIGHTED_KINDS else 0.0
        crossing = weights + rows * (segment.bytes_moved - weights)
        found.append(replace(segment, flops=rows * segment.flops, bytes_moved=crossing))
    return found


def contention(device: Device, format: str, workers: int, threads: int) -> tuple[float, float]:
    """How much slower (compute, memory) each of `workers` is while all of them run, `threads` each, on one machine."""
    unit = device.unit_for(format)
    if unit.name != "cpu":
        return float(workers), float(workers)  # they take turns on the one unit
    wanted = workers * bandwidth_gbps(unit, threads)
    return max(1.0, workers * threads / unit.cores), max(1.0, wanted / unit.bandwidth_gbps)

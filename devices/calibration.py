"""What fraction of the roofline kernels reach: the reference that ships, and the fit that makes such numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from edgekit.devices.segment import Segment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A log-residual past this counts linearly, not squared (Huber 1964): one odd model does not bend the fit.
HUBER = 0.25
# Weight of "stay near the prior" against one model's squared log-residual: a kind that few models show stays put.
RIDGE = 0.01
ITERATIONS = 60


@dataclass(frozen=True)
class Calibration:
    """`values`: "kind/precision" -> fraction of the peak; "memory/precision" -> fraction of the sustained copy rate
    (above 1 where caches serve part of the traffic). `spread`: measured / predicted lies within [1/spread, spread]
    for about 90 % of models. `measured`: the values are this machine's own.

    `kernels`: what the probe's kernels reached on the machine whose models gave `values`; kernels inside a model are
    slower than alone, by a ratio that the probe takes from here. `dispatch_ratio`: the same for launches.
    """

    values: Mapping[str, float]
    spread: float
    measured: bool
    own_spread: float
    format_factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    kernels: Mapping[str, float] = field(default_factory=dict)
    dispatch_ratio: float = 1.0

    def efficiency(self, kind: str, precision: str) -> float:
        """Falls back on the kind's fp32 value, then on "other": a new kind is a plain kernel."""
        for key in (f"{kind}/{precision}", f"{kind}/fp32", f"other/{precision}"):
            if key in self.values:
                return self.values[key]
        return self.values["other/fp32"]

    def overlaid(self, own: Mapping[str, float]) -> Calibration:
        """With a machine's own values over these; its error bar is the narrower one."""
        if not own:
            return self
        return replace(self, values={**self.values, **own}, spread=self.own_spread, measured=True)

    def format_factor(self, arch: str, format: str, precision: str) -> float:
        """Time of this format's kernels over those of the runtime that was calibrated (ONNX Runtime on CPUs)."""
        table = self.format_factors.get(arch, {})
        return table.get(f"{format}/{precision}", table.get(f"{format}/fp32", 1.0))


@cache
def reference_calibration(family: str) -> Calibration:
    """`family` is cpu-x86_64, cpu-aarch64 or gpu."""
    row = _read(f"calibration-{family}.toml")
    return Calibration(
        values=row["efficiency"],
        spread=row["spread_transferred"],
        measured=False,
        own_spread=row["spread_measured"],
        format_factors=_read("calibration-formats.toml"),
        kernels=row.get("kernels", {}),
        dispatch_ratio=row.get("dispatch_ratio", 1.0),
    )


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((files("edgekit.devices") / name).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Run:
    """One model's segments, and what they took together."""

    name: str
    segments: tuple[Segment, ...]
    measured_ms: float


@dataclass(frozen=True)
class Hardware:
    """What the fit takes as given, at the threads that the runs used: peaks in GFLOP/s, the copy rate in GB/s."""

    peak_gflops: Mapping[str, float]
    bandwidth_gbps: float


@dataclass(frozen=True)
class Fit:
    """`values` as in Calibration; `dispatch_us` what one launch costs."""

    values: dict[str, float]
    dispatch_us: float


def estimate_ms(segments: Sequence[Segment], hardware: Hardware, fit: Fit) -> float:
    """The same roofline as `latency.predict`, for one fit."""
    return float(_Design([Run("", tuple(segments), 1.0)], hardware, list(_logs(fit))).predict(_logs(fit))[0])


def fit_efficiency(runs: Sequence[Run], hardware: Hardware, prior: Fit, ridge: float = RIDGE) -> Fit:
    """Robust least squares on log(measured / predicted) over the logarithms of all values, drawn towards `prior`.

    Levenberg-Marquardt with Huber weights; in logarithms every value stays above zero, and an error of a factor two
    weighs the same on a small model as on a large one. Values that no run shows stay at the prior.
    """
    start = _logs(prior)
    design = _Design(runs, hardware, list(start))
    theta0 = np.array(list(start.values()))
    theta, damping = theta0.copy(), 1e-2
    loss = design.loss(theta, theta0, ridge)
    for _ in range(ITERATIONS):
        residual, jacobian = design.linearize(theta)
        weight = np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-12))
        normal = jacobian.T @ (weight[:, None] * jacobian) + ridge * np.eye(len(theta))
        gradient = jacobian.T @ (weight * residual) - ridge * (theta - theta0)
        step = np.linalg.solve(normal + damping * np.eye(len(theta)), gradient)
        step_loss = design.loss(theta + step, theta0, ridge)
        if step_loss < loss:
            theta, loss, damping = theta + step, step_loss, damping / 3
        else:
            damping *= 4
        if damping > 1e8:
            break
    values = dict(zip(start, np.exp(theta).tolist(), strict=True))
    return Fit({key: value for key, value in values.items() if key != DISPATCH}, values[DISPATCH])


DISPATCH = "dispatch"


def _logs(fit: Fit) -> dict[str, float]:
    return {key: float(np.log(value)) for key, value in {**fit.values, DISPATCH: fit.dispatch_us}.items()}


class _Design:
    """Segments as arrays: ideal seconds at full efficiency, and which parameter divides each."""

    def __init__(self, runs: Sequence[Run], hardware: Hardware, keys: list[str]) -> None:
        index = {key: position for position, key in enumerate(keys)}
        rows = [(row, segment) for row, run in enumerate(runs) for segment in run.segments]
        self.count, self.size, self.dispatch = len(runs), len(keys), index[DISPATCH]
        self.row = np.array([row for row, _ in rows], dtype=np.int64)
        self.compute = np.array([_compute_us(segment, hardware) for _, segment in rows])
        self.memory = np.array([segment.bytes_moved / hardware.bandwidth_gbps / 1e3 for _, segment in rows])
        self.dispatches = np.array([segment.dispatches for _, segment in rows])
        self.kind = np.array([_key(index, segment.kind, segment.precision) for _, segment in rows], dtype=np.int64)
        self.storage = np.array([_key(index, "memory", segment.precision) for _, segment in rows], dtype=np.int64)
        self.measured = np.log(np.array([run.measured_ms * 1e3 for run in runs]))

    def _parts(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        compute = self.compute * np.exp(-theta[self.kind])
        memory = self.memory * np.exp(-theta[self.storage])
        overhead = self.dispatches * np.exp(theta[self.dispatch])
        total = np.bincount(self.row, np.maximum(compute, memory) + overhead, self.count)
        return compute, memory, overhead, total

    def predict(self, logs: Mapping[str, float]) -> np.ndarray:
        """Milliseconds, one a run."""
        return self._parts(np.array(list(logs.values())))[3] / 1e3

    def linearize(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-residuals [runs], and how the log-prediction moves with each parameter [runs, parameters]."""
        compute, memory, overhead, total = self._parts(theta)
        jacobian = np.zeros((self.count, self.size))
        by_compute = compute >= memory
        np.add.at(jacobian, (self.row[by_compute], self.kind[by_compute]), -compute[by_compute])
        np.add.at(jacobian, (self.row[~by_compute], self.storage[~by_compute]), -memory[~by_compute])
        np.add.at(jacobian, (self.row, np.full_like(self.row, self.dispatch)), overhead)
        return self.measured - np.log(total), jacobian / total[:, None]

    def loss(self, theta: np.ndarray, theta0: np.ndarray, ridge: float) -> float:
        size = np.abs(self.measured - np.log(self._parts(theta)[3]))
        huber = np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER))
        return float(huber.sum() + 0.5 * ridge * np.square(theta - theta0).sum())


def _compute_us(segment: Segment, hardware: Hardware) -> float:
    peak = hardware.peak_gflops.get(segment.precision, hardware.peak_gflops["fp32"])
    return segment.flops / peak / 1e3


def _key(index: Mapping[str, int], kind: str, precision: str) -> int:
    for key in (f"{kind}/{precision}", f"{kind}/fp32", "other/fp32"):
        if key in index:
            return index[key]
    raise AssertionError("a prior holds other/fp32")

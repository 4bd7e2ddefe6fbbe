"""What came of each candidate, and which one is shipped."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgekit.bundle.manifest import Tier
from edgekit.devices.device import Device
from edgekit.devices.latency import Prediction
from edgekit.devices.segment import Segment
from edgekit.errors import EdgekitError, QualityError
from edgekit.exporters.base import Artifact
from edgekit.model import Model
from edgekit.parity import Outputs, Quality, Step
from edgekit.quantization import Fallback


@dataclass(frozen=True)
class Candidate:
    """`asked` is False where `auto` proposed it."""

    format: str
    precision: str
    asked: bool = False

    def __str__(self) -> str:
        return f"{self.format} {self.precision}"


@dataclass(frozen=True)
class Built:
    """A candidate as it came out. `why_not` is set where it was refused or lost; `artifact` is None where none came.

    `base`: the float Model that `model` was quantized from, whose layers it can be compared with one by one.
    `host_ms` is the median on this machine; `device` what the latency model expects of the target. `answers`: the
    artifact's outputs on the judged samples.
    """

    candidate: Candidate
    model: Model
    base: Model
    artifact: Artifact | None = None
    quality: Quality | None = None
    steps: tuple[Step, ...] = ()
    segments: tuple[Segment, ...] = ()
    host_ms: float | None = None
    device: Prediction | None = None
    answers: Outputs = field(default_factory=dict)
    fallbacks: tuple[Fallback, ...] = ()
    why_not: str = ""
    error: EdgekitError | None = None


@dataclass(frozen=True)
class Packed:
    """A candidate that goes into the bundle as the part `name`, to run on `tier`."""

    name: str
    built: Built
    tier: Tier = "device"


# What this machine's clock was taken on.
HOST_UNIT = "cpu"


def choose(built: Sequence[Built], device: Device, host_unit: str = HOST_UNIT) -> tuple[Built, list[Built]]:
    """The winner, and every candidate with `why_not` filled in for the losers.

    The score is the predicted latency on the device, corrected by what this machine measured against the float twin
    wherever the same kind of unit runs the format. An integer artifact that is no faster than its float twin loses to
    it, unless it was asked for. Raises QualityError, or the first candidate's own error, where none is left.
    """
    judged = [against_twin(one, built, device, host_unit) for one in built]
    if any(one.candidate.asked for one in built):
        judged = [_only_asked(one) for one in judged]
    alive = [one for one in judged if not one.why_not]
    if not alive:
        errors = [one.error for one in judged if one.error is not None]
        quality = [error for error in errors if isinstance(error, QualityError)]
        raise (quality or errors)[0]
    scale = _host_scale(alive, device, host_unit)
    winner = min(alive, key=lambda one: score(one, device, host_unit, scale))
    best = score(winner, device, host_unit, scale)
    outcome = []
    for one in judged:
        if one is not winner and not one.why_not:
            times = score(one, device, host_unit, scale) / best
            one = replace(one, why_not=_slower(one, winner, device, host_unit, times))
        outcome.append(one)
    return winner, outcome


def _slower(one: Built, winner: Built, device: Device, host_unit: str, times: float) -> str:
    """By what factor, and where two clocks are averaged in it what each of them says."""
    told = f"{times:.2f}x the time of {winner.candidate}"
    units = {device.unit_for(built.candidate.format).name for built in (one, winner)}
    if units != {host_unit} or not (one.device and winner.device and one.host_ms and winner.host_ms):
        return f"{told}, predicted"
    predicted = one.device.latency_ms / winner.device.latency_ms
    return f"{told} ({predicted:.2f}x predicted, {one.host_ms / winner.host_ms:.2f}x here)"


def score(built: Built, device: Device, host_unit: str, scale: float) -> float:
    """Expected ms on the device: the geometric mean of the prediction and of the measurement scaled to the device."""
    assert built.device is not None and built.host_ms is not None
    predicted = built.device.latency_ms
    if device.unit_for(built.candidate.format).name != host_unit:
        return predicted
    return math.sqrt(predicted * built.host_ms * scale)


def _host_scale(alive: Sequence[Built], device: Device, host_unit: str) -> float:
    """Device ms per host ms, the median over the candidates that the same kind of unit runs."""
    ratios = [
        one.device.latency_ms / one.host_ms
        for one in alive
        if one.device and one.host_ms and device.unit_for(one.candidate.format).name == host_unit
    ]
    return statistics.median(ratios) if ratios else 1.0


def against_twin(one: Built, built: Sequence[Built], device: Device, host_unit: str = HOST_UNIT) -> Built:
    """`one`, with `why_not` filled in where it is an integer artifact that is no faster than its float twin."""
    twin = float_twin(one, built)
    if one.why_not or twin is None or one.candidate.asked or one is twin:
        return one
    if device.unit_for(one.candidate.format).name == host_unit:
        ours, theirs, where = one.host_ms, twin.host_ms, "here"
    else:
        ours = one.device.latency_ms if one.device else None
        theirs, where = (twin.device.latency_ms if twin.device else None), f"predicted on {device.name}"
    if ours is not None and theirs is not None and ours >= theirs:
        return replace(one, why_not=f"no faster than float: {ours:.3g} ms against {theirs:.3g} ms {where}")
    return one


def _only_asked(one: Built) -> Built:
    return one if one.candidate.asked or one.why_not else replace(one, why_not="built to compare with: not asked for")


def float_twin(one: Built, built: Sequence[Built]) -> Built | None:
    """The fp32 candidate of the same format."""
    return next(
        (
            other
            for other in built
            if other.candidate.format == one.candidate.format and other.candidate.precision == "fp32"
        ),
        None,
    )

"""Candidates: each format and precision that the device runs is built, gated and timed; the best one is shipped."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.bisection import first_bad_layer
from edgekit.costs import segments as count_segments
from edgekit.devices.device import Device
from edgekit.devices.latency import Prediction, predict
from edgekit.devices.segment import Segment
from edgekit.errors import EdgekitError, ExportError, QualityError
from edgekit.exporters.base import Artifact, Exporter
from edgekit.exporters.onnx_source import quantize_onnx
from edgekit.model import Model
from edgekit.parity import (
    FLOAT_SQNR_DB,
    RUNTIME_LOSS_DB,
    Limits,
    Outputs,
    Quality,
    Step,
    compare,
    judge,
    judged_samples,
    run_model,
    run_session,
)
from edgekit.progress import Progress
from edgekit.quantization import Fallback
from edgekit.quantizers.quantize import QuantizerOptions, quantize, simulate, worst_layers
from edgekit.quantizers.sensitivity import sensitivities
from edgekit.runtimes.session import SessionOptions

# Past this a model is better served in float.
MAX_FALLBACKS = 8
TIMED_RUNS = 30


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

    `host_ms` is the median on this machine; `device` what the latency model expects of the target. `answers`: the
    artifact's outputs on the judged samples.
    """

    candidate: Candidate
    model: Model
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


@dataclass
class Bench:
    """Builds candidates of one captured Model for one device; what they share is computed once and kept."""

    model: Model
    device: Device
    limits: Limits
    options: QuantizerOptions
    folder: Path
    threads: int
    progress: Progress
    _quantized: dict[tuple[object, ...], Model] = field(default_factory=dict)
    _reference: Outputs | None = None

    @property
    def reference(self) -> Outputs:
        """The float model's answers on the judged samples."""
        if self._reference is None:
            self._reference = run_model(self.model, judged_samples(self.model))
        return self._reference

    def build(self, candidate: Candidate, exporter: Exporter) -> Built:
        """Never raises for a candidate that cannot be built or is not good enough: `why_not` and `error` say it."""
        try:
            return self._gate(candidate, exporter)
        except EdgekitError as error:
            return Built(candidate, self.model, why_not=error.message, error=error)

    def _gate(self, candidate: Candidate, exporter: Exporter) -> Built:
        """Export and compare, and as long as a limit is broken keep the layer to blame in float and repeat."""
        keep: tuple[Fallback, ...] = ()
        while True:
            built = self._attempt(candidate, exporter, keep)
            assert built.quality is not None
            violation = self._violation(built)
            if violation is None:
                return replace(built, host_ms=self._time(built), device=self._predict(built))
            blamed = self._blame(built, exporter) if len(keep) < MAX_FALLBACKS else ()
            if not blamed:
                error = QualityError(
                    f"{candidate}: {violation}",
                    layers=worst_layers(self.model, built.model)[:10],
                    hint="raise --max-drop, give more calibration data, or --quantize none",
                )
                return replace(built, why_not=violation, error=error)
            keep = (*keep, *blamed)

    def _attempt(self, candidate: Candidate, exporter: Exporter, keep: tuple[Fallback, ...]) -> Built:
        self.progress(f"{candidate}: quantize", 0, 3)
        model = self._quantize(candidate.precision, exporter, keep)
        self.progress(f"{candidate}: export", 1, 3)
        artifact = exporter.export(model, self.folder, self.device)
        self.progress(f"{candidate}: compare", 2, 3)
        samples = judged_samples(self.model)
        steps: list[Step] = []
        simulated = self.reference
        if model.quantization is not None and model.onnx_path is None:
            simulated = self._simulate(model)
            steps.append(compare(f"quantized ({candidate.precision})", self.reference, simulated))
        with artifact.open(model, SessionOptions(threads=self.threads)) as session:
            actual = run_session(session, samples)
        steps.append(compare(f"artifact ({candidate.format})", simulated, actual))
        record = model.quantization
        return Built(
            candidate,
            model,
            artifact,
            judge(self.model, self.reference, actual),
            tuple(steps),
            count_segments(model, candidate.precision),
            answers=actual,
            fallbacks=record.fallbacks if record else (),
        )

    def _quantize(self, precision: str, exporter: Exporter, keep: tuple[Fallback, ...]) -> Model:
        scheme = exporter.scheme(self.device)
        if self.model.onnx_path is not None and exporter.needs_torch_module:
            raise ExportError(
                f"{exporter.format} starts from a torch module, and {self.model.name} is a trained .onnx file",
                hint="--format onnx or tensorrt, or give the module that the file was exported from",
            )
        if precision == "fp32":
            return self.model
        if self.model.onnx_path is not None:
            return quantize_onnx(self.model, precision, scheme)
        key = (precision, scheme, keep)
        if key not in self._quantized:
            self._quantized[key] = quantize(
                self.model, precision, scheme, self.options, tuple((f.layer, f.why) for f in keep), self.progress
            )
        return self._quantized[key]

    def _simulate(self, model: Model) -> Outputs:
        return run_model(simulate(model), judged_samples(self.model))

    def _violation(self, built: Built) -> str | None:
        assert built.quality is not None
        if built.model.quantization is None:
            step = built.steps[-1]
            if step.sqnr_db < FLOAT_SQNR_DB:
                return f"float artifact differs from torch: SQNR {step.sqnr_db:.1f} dB, allowed {FLOAT_SQNR_DB:g}"
            return None
        return built.quality.violation(self.limits)

    def _blame(self, built: Built, exporter: Exporter) -> tuple[Fallback, ...]:
        """The layers to keep in float next: the runtime's first bad one, or those that cost the most quality.

        The latter double from one attempt to the next, taken by the noise that they make for the work that they are.
        """
        assert built.quality is not None
        record = built.model.quantization
        if record is None or not record.weights or not record.activations:
            return ()
        simulated = built.steps[0].sqnr_db
        if built.quality.sqnr_db < simulated - RUNTIME_LOSS_DB:
            found = first_bad_layer(built.model, simulate(built.model), exporter, self.device, simulated)
            if found is not None and found[0] in record.layers:
                why = f"{exporter.format} computes it {found[1]:.1f} dB from its reference"
                return (Fallback(found[0], "fp32", why),)
        kept = len(record.fallbacks)
        rows = sensitivities(self.model, built.model, progress=self.progress)
        rows.sort(key=lambda row: -(10 ** (-row.sqnr_db / 10)) / max(row.mflops, 0.01))
        return tuple(
            Fallback(row.layer, "fp32", f"alone it limits the output to {row.sqnr_db:.1f} dB")
            for row in rows[: max(1, kept)]
        )

    def _time(self, built: Built) -> float:
        assert built.artifact is not None
        return time_artifact(built.artifact, built.model, self.threads)

    def _predict(self, built: Built) -> Prediction:
        return predict(built.segments, self.device, built.candidate.format)


def time_artifact(artifact: Artifact, model: Model, threads: int) -> float:
    """The median latency on this machine, in ms, of one example input after warm-up."""
    feeds = {name: value.numpy() for name, value in model.example_inputs.items()}
    laps = []
    with artifact.open(model, SessionOptions(threads=threads)) as session:
        for _ in range(3):
            session.run(feeds)
        for _ in range(TIMED_RUNS):
            start = time.perf_counter()
            session.run(feeds)
            laps.append(1e3 * (time.perf_counter() - start))
    return statistics.median(laps)


def choose(built: Sequence[Built], device: Device, host_unit: str = "cpu") -> tuple[Built, list[Built]]:
    """The winner, and every candidate with `why_not` filled in for the losers.

    The score is the predicted latency on the device, corrected by what this machine measured against the float twin
    wherever the same kind of unit runs the format. An integer artifact that is no faster than its float twin loses to
    it, unless it was asked for. Raises QualityError, or the first candidate's own error, where none is left.
    """
    judged = [_against_twin(one, built, device, host_unit) for one in built]
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
            one = replace(one, why_not=f"{times:.2f}x the latency of {winner.candidate}")
        outcome.append(one)
    return winner, outcome


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


def _against_twin(one: Built, built: Sequence[Built], device: Device, host_unit: str) -> Built:
    twin = float_twin(one, built)
    if one.why_not or twin is None or one.candidate.asked or one is twin:
        return one
    if device.unit_for(one.candidate.format).name == host_unit:
        ours, theirs, where = one.host_ms, twin.host_ms, "here"
    else:
        ours = one.device.latency_ms if one.device else None
        theirs, where = (twin.device.latency_ms if twin.device else None), f"predicted on {device.name}"
    if ours is not None and theirs is not None and ours >= theirs:
        return replace(one, why_not=f"no faster than float: {ours:.2f} ms against {theirs:.2f} ms {where}")
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

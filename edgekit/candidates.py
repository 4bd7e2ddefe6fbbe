"""Candidates: each format and precision that the device runs is built, gated and timed; the best one is shipped."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from edgekit.bisection import first_bad_layer
from edgekit.costs import segments as count_segments
from edgekit.devices.device import Device
from edgekit.devices.latency import Prediction, predict
from edgekit.devices.segment import Segment
from edgekit.errors import EdgekitError, ExportError, QualityError
from edgekit.exporters.base import Artifact, Exporter
from edgekit.exporters.onnx_sensitivity import node_sensitivities
from edgekit.exporters.onnx_source import quantize_onnx
from edgekit.model import Model, Sample
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
from edgekit.quantizers.equalization import EqualizeLayers
from edgekit.quantizers.quantize import QuantizerOptions, equalizes, quantize, simulate, worst_layers
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
    _quantized: dict[tuple[str, tuple[Fallback, ...]], list[Model]] = field(default_factory=dict)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        return judged_samples(self.model)

    @cached_property
    def reference(self) -> Outputs:
        """The float model's answers on the judged samples."""
        return run_model(self.model, self.samples)

    @cached_property
    def equalized(self) -> Model:
        return EqualizeLayers()(self.model, self.progress)

    def build(self, candidate: Candidate, exporter: Exporter) -> Built:
        """Never raises for a candidate that cannot be built or is not good enough: `why_not` and `error` say it."""
        try:
            return self._gate(candidate, exporter)
        except EdgekitError as error:
            return self.left_out(candidate, error.message, error)

    def left_out(self, candidate: Candidate, why_not: str, error: EdgekitError | None = None) -> Built:
        return Built(candidate, self.model, self.model, why_not=why_not, error=error)

    def outdone(self, candidate: Candidate, built: Sequence[Built]) -> str:
        """Why `candidate` is not worth the minutes that it takes, or "".

        int8 of the same format that passed and that the device should run no slower: both lose accuracy for speed.
        """
        if candidate.asked or candidate.precision != "fp16":
            return ""
        for one in built:
            same = one.candidate.format == candidate.format and one.candidate.precision.startswith("int8")
            if same and not one.why_not and one.device is not None:
                expected = predict(count_segments(self.model, "fp16"), self.device, candidate.format).latency_ms
                if one.device.latency_ms <= expected:
                    here = f"predicted {expected:.1f} ms against {one.device.latency_ms:.1f}"
                    return f"not built: {one.candidate} is within the limits and faster ({here})"
        return ""

    def _gate(self, candidate: Candidate, exporter: Exporter) -> Built:
        """Quantize, export and compare; as long as a limit is broken keep the layers to blame in float and repeat."""
        keep: tuple[Fallback, ...] = ()
        suspects: Iterator[Fallback] | None = None
        while True:
            built = self._attempt(candidate, exporter, keep)
            violation = self._violation(built)
            if violation is None:
                return replace(built, host_ms=self._time(built), device=self._predict(built))
            blamed: tuple[Fallback, ...] = ()
            if built.model.quantization is not None and len(keep) < MAX_FALLBACKS:
                blamed = self._miscomputed(built, exporter)
                if not blamed:
                    suspects = suspects if suspects is not None else iter(self._ranked(built, exporter))
                    # doubled from one attempt to the next: each attempt costs as much as the first
                    blamed = tuple(itertools.islice(suspects, max(1, len(keep))))
            if not blamed:
                return replace(built, why_not=violation, error=self._refusal(candidate, built, violation, keep))
            keep = (*keep, *blamed)

    def _refusal(self, candidate: Candidate, built: Built, violation: str, keep: tuple[Fallback, ...]) -> QualityError:
        tried = f", with {len(keep)} layers in float already" if keep else ""
        return QualityError(
            f"{candidate}: {violation}{tried}",
            layers=worst_layers(built.base, built.model)[:10],
            hint="raise --max-drop, give more calibration data, or --quantize none",
        )

    def _attempt(self, candidate: Candidate, exporter: Exporter, keep: tuple[Fallback, ...]) -> Built:
        """Without an artifact where the simulation in torch is already beyond the limits."""
        retry = f", {len(keep)} kept in float" if keep else ""
        if candidate.precision != "fp32":
            self.progress(f"{candidate}: quantize{retry}", 0, 0)
        base, model = self._quantize(candidate.precision, exporter, keep)
        record = model.quantization
        built = Built(candidate, model, base, fallbacks=record.fallbacks if record else ())
        steps: list[Step] = []
        simulated = self.reference
        if record is not None and model.onnx_path is None:
            self.progress(f"{candidate}: simulate{retry}", 0, 0)
            simulated = run_model(simulate(model), self.samples)
            steps.append(compare(f"quantized ({candidate.precision})", self.reference, simulated))
            built = replace(built, steps=tuple(steps), quality=judge(self.model, self.reference, simulated))
            if self._violation(built) is not None:
                return built
        self.progress(f"{candidate}: export{retry}", 0, 0)
        artifact = exporter.export(model, self.folder, self.device)
        self.progress(f"{candidate}: compare{retry}", 0, 0)
        with artifact.open(model, SessionOptions(threads=self.threads)) as session:
            actual = run_session(session, self.samples)
        steps.append(compare(f"artifact ({candidate.format})", simulated, actual))
        return replace(
            built,
            artifact=artifact,
            quality=judge(self.model, self.reference, actual),
            steps=tuple(steps),
            segments=count_segments(model, candidate.precision),
            answers=actual,
        )

    def _quantize(self, precision: str, exporter: Exporter, keep: tuple[Fallback, ...]) -> tuple[Model, Model]:
        """(the float Model that it starts from, the quantized Model)"""
        scheme = exporter.scheme(self.device)
        if self.model.onnx_path is not None and exporter.needs_torch_module:
            raise ExportError(
                f"{exporter.format} starts from a torch module, and {self.model.name} is a trained .onnx file",
                hint="--format onnx or tensorrt, or give the module that the file was exported from",
            )
        if precision == "fp32":
            return self.model, self.model
        if self.model.onnx_path is not None:
            model = quantize_onnx(self.model, precision, scheme)
            assert model.quantization is not None
            return self.model, replace(model, quantization=replace(model.quantization, fallbacks=keep))
        base = self.equalized if equalizes(precision, self.options) else self.model
        known = self._quantized.setdefault((precision, keep), [])
        for model in known:
            if model.quantization is not None and model.quantization.scheme == scheme:
                return base, model
        options = replace(self.options, equalize=False)
        reasons = tuple((line.layer, line.why) for line in keep)
        model = quantize(base, precision, scheme, options, reasons, self.progress, known)
        known.append(model)
        return base, model

    def _violation(self, built: Built) -> str | None:
        assert built.quality is not None
        if built.model.quantization is None:
            step = built.steps[-1]
            if step.sqnr_db < FLOAT_SQNR_DB:
                return f"float artifact differs from torch: SQNR {step.sqnr_db:.1f} dB, allowed {FLOAT_SQNR_DB:g}"
            return None
        return built.quality.violation(self.limits)

    def _miscomputed(self, built: Built, exporter: Exporter) -> tuple[Fallback, ...]:
        """The first layer that the runtime computes otherwise than its simulation, where there is one."""
        record, quality = built.model.quantization, built.quality
        if built.artifact is None or built.model.onnx_path is not None or record is None or quality is None:
            return ()
        simulated = built.steps[0].sqnr_db
        if not record.activations or quality.sqnr_db >= simulated - RUNTIME_LOSS_DB:
            return ()
        self.progress(f"{built.candidate}: find the first bad layer", 0, 0)
        found = first_bad_layer(built.model, simulate(built.model), exporter, self.device, simulated)
        if found is None or found[0] not in record.layers:
            return ()
        return (Fallback(found[0], "float32", f"{exporter.format} computes it {found[1]:.1f} dB from its reference"),)

    def _ranked(self, built: Built, exporter: Exporter) -> list[Fallback]:
        """The layers that limit the quality, by the noise that they make for the work that they are."""
        record = built.model.quantization
        assert record is not None
        if built.model.onnx_path is not None:
            rows = node_sensitivities(built.model, exporter.format, self.progress) if record.method == "int8" else []
        elif record.weights:
            rows = sensitivities(built.base, built.model, progress=self.progress)
        else:
            rows = []
        rows = sorted(rows, key=lambda row: -(10 ** (-row.sqnr_db / 10)) / max(row.mflops, 0.01))
        return [Fallback(row.layer, "float32", f"alone it limits the output to {row.sqnr_db:.1f} dB") for row in rows]

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

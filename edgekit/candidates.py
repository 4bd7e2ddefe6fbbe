"""Candidates: each format and precision that the device runs is built, gated and timed."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
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
from edgekit.exporters.garbage import seldom_collected
from edgekit.exporters.onnx_sensitivity import node_sensitivities
from edgekit.exporters.onnx_source import quantize_onnx
from edgekit.model import Model, Sample
from edgekit.parity import (
    FLOAT_SQNR_DB,
    RUNTIME_LOSS_DB,
    Limits,
    Outputs,
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
from edgekit.quantizers.quantize import FLOAT, QuantizerOptions, equalizes, quantize, simulate, worst_layers
from edgekit.quantizers.sensitivity import Sensitivity, sensitivities
from edgekit.report.text import ms_text
from edgekit.runtimes.session import SessionOptions
from edgekit.selection import HOST_UNIT, Built, Candidate, against_twin, score
from edgekit.suspects import MAX_FALLBACKS, Suspects

# What the predictions of two formats on one device may differ by and still leave the clock to decide.
CLEARLY_SLOWER = 1.05
# By how much the clock may outdo what the prediction makes of a precision against its float twin.
UNFORESEEN = 1.5
TIMED_RUNS = 30
# In turns: so many runs at a stretch, of which the first warms up, and so many turns after one that does not count.
LAPS, TURNS = 8, 7


@dataclass
class Bench:
    """Builds candidates of one captured Model for one device; what they share is computed once and kept.

    `keep`: layers that stay float from the start. `original`: answers of the model before its tokens were pruned, from
    which the quality is counted; None: of `model`.
    """

    model: Model
    device: Device
    limits: Limits
    options: QuantizerOptions
    folder: Path
    threads: int
    progress: Progress
    keep: tuple[Fallback, ...] = ()
    original: Outputs | None = None
    _quantized: dict[tuple[str, tuple[Fallback, ...]], list[Model]] = field(default_factory=dict)
    _segments: dict[str, tuple[Segment, ...]] = field(default_factory=dict)
    _simulated: list[tuple[Model, Outputs]] = field(default_factory=list)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        return judged_samples(self.model)

    @cached_property
    def reference(self) -> Outputs:
        """The float model's answers on the judged samples."""
        return run_model(self.model, self.samples)

    @property
    def yardstick(self) -> Outputs:
        """What the quality is counted from."""
        return self.reference if self.original is None else self.original

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
        """Why `candidate` is not worth the minutes that it takes, or "": int8 of the same format passed, and the
        device should run it no slower than fp16; or its float twin is too slow here for it to win."""
        for one in built:
            same = one.candidate.format == candidate.format and one.candidate.precision.startswith("int8")
            if candidate.precision != "fp16" or candidate.asked or not same or one.why_not or one.device is None:
                continue
            expected = self._expected_ms(candidate.format, "fp16")
            if one.device.latency_ms <= expected:
                return f"not built: {ms_text(expected)} expected, {one.candidate} {ms_text(one.device.latency_ms)}"
        return "" if candidate.asked or candidate.precision == FLOAT else self._out_of_reach(candidate, built)

    def _out_of_reach(self, candidate: Candidate, built: Sequence[Built]) -> str:
        """Why `candidate` would lose by the score of `choose` even if it were `UNFORESEEN` times as fast here as its
        float twin's clock and the prediction say, or ""."""
        timed = [
            one for one in built if one.host_ms and one.device and not against_twin(one, built, self.device).why_not
        ]
        timed = [one for one in timed if self.device.unit_for(one.candidate.format).name == HOST_UNIT]
        twin = next((one for one in timed if one.candidate == Candidate(candidate.format, FLOAT)), None)
        rivals = [one for one in timed if one.candidate.format != candidate.format]
        if twin is None or not rivals:
            return ""
        assert twin.host_ms is not None and twin.device is not None
        expected = self._expected_ms(candidate.format, candidate.precision)
        hoped_ms = twin.host_ms * expected / twin.device.latency_ms / UNFORESEEN
        best = min(rivals, key=lambda one: score(one, self.device, HOST_UNIT, 1.0))
        if math.sqrt(expected * hoped_ms) <= score(best, self.device, HOST_UNIT, 1.0):
            return ""
        assert best.host_ms is not None
        return (
            f"not built: {twin.candidate} takes {ms_text(twin.host_ms)} here, {best.candidate} {ms_text(best.host_ms)}"
        )

    def outrun(self, format: str, precisions: Sequence[str], built: Sequence[Built]) -> str:
        """Why no candidate of `format` can win over those that passed, or "".

        Only for a device of another architecture: there this machine's clock says little about one format's kernels
        against another's, and the prediction decides.
        """
        if self.device.arch == platform.machine():
            return ""
        passed = [one for one in built if one.device and not against_twin(one, built, self.device).why_not]
        if not passed:
            return ""
        best = min(passed, key=lambda one: one.device.latency_ms if one.device else math.inf)
        assert best.device is not None
        expected = min(self._expected_ms(format, precision) for precision in precisions)
        if expected < CLEARLY_SLOWER * best.device.latency_ms:
            return ""
        return f"not built: {ms_text(expected)} expected at best, {best.candidate} {ms_text(best.device.latency_ms)}"

    def _expected_ms(self, format: str, precision: str) -> float:
        """Before anything is built; a quantized layer or two more or less change little."""
        if precision not in self._segments:
            self._segments[precision] = count_segments(self.model, precision)
        return predict(self._segments[precision], self.device, format).latency_ms

    def _gate(self, candidate: Candidate, exporter: Exporter) -> Built:
        """Quantize, export and compare; as long as a limit is broken keep the layers to blame in float and repeat."""
        keep = self.keep
        suspects: Suspects | None = None
        kept = 0  # of the suspects
        while True:
            built = self._attempt(candidate, exporter, keep)
            violation = self._violation(built)
            if violation is None:
                return replace(built, host_ms=self._time(built), device=self._predict(built))
            blamed: tuple[Fallback, ...] = ()
            more = len(keep) - len(self.keep)
            if built.model.quantization is not None and more < MAX_FALLBACKS:
                assert built.quality is not None
                blamed = self._miscomputed(built, exporter)
                if not blamed:
                    suspects = suspects or Suspects.ranked(self._sensitivities(built, exporter), built.quality)
                    given_up = suspects.given_up(kept, built.quality, self.limits)
                    if given_up:
                        violation = f"{violation}: {given_up}"
                    else:
                        blamed = suspects.blamed(kept, more)
                        kept += len(blamed)
            if not blamed:
                return replace(built, why_not=violation, error=self._refusal(candidate, built, violation, keep))
            keep = (*keep, *blamed)

    def _refusal(self, candidate: Candidate, built: Built, violation: str, keep: tuple[Fallback, ...]) -> QualityError:
        tried = f", with {len(keep)} layers in float already" if keep else ""
        fixes = ["raise --max-drop"]
        if self.original is not None:
            fixes.append("prune less (auto, or a larger share)")
        if candidate.precision != FLOAT:
            fixes += ["give more calibration data", "--quantize none"]
        return QualityError(
            f"{candidate}: {violation}{tried}",
            layers=worst_layers(built.base, built.model)[:10],
            hint=", or ".join(fixes),
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
            simulated = self._simulate(model)
            steps.append(compare(f"quantized ({candidate.precision})", self.reference, simulated))
            built = replace(built, steps=tuple(steps), quality=judge(self.model, self.yardstick, simulated))
            if self._violation(built) is not None:
                return built
        self.progress(f"{candidate}: export{retry}", 0, 0)
        with seldom_collected():
            artifact = exporter.export(model, self.folder, self.device)
        self.progress(f"{candidate}: compare{retry}", 0, 0)
        with artifact.open(model, SessionOptions(threads=self.threads)) as session:
            actual = run_session(session, self.samples)
        steps.append(compare(f"artifact ({candidate.format})", simulated, actual))
        return replace(
            built,
            artifact=artifact,
            quality=judge(self.model, self.yardstick, actual),
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

    def _simulate(self, model: Model) -> Outputs:
        """Formats whose schemes differ in name only share this."""
        for known, outputs in self._simulated:
            if _same_numbers(known, model):
                return outputs
        outputs = run_model(simulate(model), self.samples)
        self._simulated.append((model, outputs))
        return outputs

    def _violation(self, built: Built) -> str | None:
        assert built.quality is not None
        if built.model.quantization is None:
            step = built.steps[-1]
            if step.sqnr_db < FLOAT_SQNR_DB:
                return f"float artifact differs from torch: SQNR {step.sqnr_db:.1f} dB, allowed {FLOAT_SQNR_DB:g}"
            return None if self.original is None else built.quality.violation(self.limits)
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

    def _sensitivities(self, built: Built, exporter: Exporter) -> list[Sensitivity]:
        record = built.model.quantization
        assert record is not None
        if built.model.onnx_path is not None:
            return node_sensitivities(built.model, exporter.format, self.progress) if record.method == "int8" else []
        return sensitivities(built.base, built.model, progress=self.progress) if record.weights else []

    def _time(self, built: Built) -> float:
        assert built.artifact is not None
        return time_artifact(built.artifact, built.model, self.threads)

    def _predict(self, built: Built) -> Prediction:
        return predict(built.segments, self.device, built.candidate.format)


def _same_numbers(one: Model, other: Model) -> bool:
    first, second = one.quantization, other.quantization
    return (
        one.module is other.module
        and first is not None
        and second is not None
        and (first.method, first.activations, first.layers) == (second.method, second.activations, second.layers)
    )


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


def time_in_turns(pairs: Sequence[tuple[Artifact, Model]], threads: int) -> list[float]:
    """Median latencies on this machine, in ms, all in one process and in turns, so that a change of its speed meets
    them alike."""
    feeds = [{name: value.numpy() for name, value in model.example_inputs.items()} for _, model in pairs]
    laps: list[list[float]] = [[] for _ in pairs]
    with ExitStack() as stack:
        sessions = [stack.enter_context(one.open(model, SessionOptions(threads=threads))) for one, model in pairs]
        for turn in range(TURNS + 1):
            for session, inputs, mine in zip(sessions, feeds, laps, strict=True):
                found = []
                for _ in range(LAPS):
                    start = time.perf_counter()
                    session.run(dict(inputs))
                    found.append(1e3 * (time.perf_counter() - start))
                mine += found[1:] if turn else []
    return [statistics.median(mine) for mine in laps]

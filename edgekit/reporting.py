"""What was measured, gathered into the report that a bundle carries."""

from __future__ import annotations

import base64
import io
import platform
import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgekit.costs import peak_activation_bytes
from edgekit.devices.device import Device
from edgekit.devices.energy import energy
from edgekit.devices.latency import roofs
from edgekit.model import Model
from edgekit.parity import Outputs, Step
from edgekit.quantizers.quantize import worst_layers
from edgekit.report.evaluate import evaluate_accuracy, evaluate_agreement
from edgekit.report.model import (
    Candidate,
    Change,
    Energy,
    EvaluationReport,
    Fallback,
    InformationPoint,
    Latency,
    Layer,
    Memory,
    ParityStep,
    Predicted,
    Quality,
    Roofline,
    RooflinePoint,
    Sample,
    SplitRow,
)
from edgekit.runtimes.host import isa
from edgekit.runtimes.predict import timed_prediction, top_labels
from edgekit.runtimes.preprocess import decode_image, make_feeder
from edgekit.runtimes.session import Session, SessionOptions
from edgekit.runtimes.timing import benchmark
from edgekit.selection import Built
from edgekit.whole import told

PREVIEWS = 6
THUMBNAIL_SIDE = 160


@dataclass(frozen=True)
class Evidence:
    """What the build flow learned, for one report. `twin` is the float artifact of the winner's format; `whole` the
    model before it was pruned, in float and in the winner's precision."""

    device: Device
    original: Model
    folded: Model
    winner: Built
    twin: Built | None
    outcome: Sequence[Built]
    reference: Outputs
    steps: tuple[Step, ...]
    threads: int
    seconds: dict[str, float]
    versions: dict[str, str]
    whole: tuple[Built, ...] = ()

    @property
    def float_twin(self) -> Built | None:
        """What sizes and times are compared with: the whole model, wherever it could be built."""
        found = [one for one in self.whole if one.candidate.precision == "fp32" and one.artifact is not None]
        return found[0] if found else self.twin


def build_report(
    evidence: Evidence,
    split: Sequence[SplitRow] = (),
    information: Sequence[InformationPoint] = (),
    notes: Sequence[str] = (),
) -> EvaluationReport:
    """Opens the winner once more: for its percentiles, the stages around it, and what it says of the previews."""
    winner, device, original = evidence.winner, evidence.device, evidence.original
    artifact = winner.artifact
    assert artifact is not None
    with artifact.open(winner.model, SessionOptions(threads=evidence.threads)) as session:
        feeds = {name: value.numpy() for name, value in original.example_inputs.items()}
        timing = benchmark(session, feeds, runs=50, limit_s=10, warmup_s=1)
        stages, samples = _previews(original, session, evidence.folded)
    twin = evidence.float_twin
    float_size = twin.artifact.size_bytes if twin and twin.artifact else None
    idle = told(evidence.whole, winner)
    return EvaluationReport(
        bundle=original.name,
        title=original.name,
        task=original.task,
        device=device.name,
        device_title=device.title,
        format=artifact.format,
        precision=artifact.precision,
        quality=_quality(evidence),
        layers=_layers(evidence),
        latency_ms=_latency(evidence, timing.p50_ms, timing.p95_ms, timing.runs),
        memory=Memory(
            artifact_bytes=artifact.size_bytes,
            peak_activation_bytes=peak_activation_bytes(winner.model),
            peak_rss_bytes=None,
        ),
        roofline=_roofline(winner, device),
        flops=sum(segment.flops for segment in winner.segments),
        energy=_energy(winner, device),
        compression_ratio=float_size / artifact.size_bytes if float_size else None,
        float_size_bytes=float_size,
        stages_ms=stages,
        candidates=(
            *(_candidate(one, one is winner) for one in evidence.outcome),
            *(_whole(one) for one in evidence.whole),
        ),
        parity=tuple(
            ParityStep(step=step.name, sqnr_db=step.sqnr_db, max_abs=step.max_abs)
            for step in (*evidence.steps, *winner.steps)
        ),
        fallbacks=tuple(Fallback(layer=f.layer, precision=f.precision, why=f.why) for f in winner.fallbacks),
        samples=samples,
        seconds={**evidence.seconds, **{entry.name: entry.seconds for entry in winner.model.history}},
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        host=_host(),
        isa=isa(),
        versions=evidence.versions,
        split=tuple(split),
        information=tuple(information),
        changes=tuple(Change(name=entry.name, detail=entry.detail) for entry in winner.model.history if entry.detail),
        notes=(*original.notes, *artifact.notes, *notes, *((idle,) if idle else ())),
    )


def _quality(evidence: Evidence) -> Quality | None:
    """Of the output that the postprocessing reads; without one of the worst output, as the candidates are judged."""
    original = evidence.original
    names = [original.postprocess.output] if original.postprocess else list(evidence.reference)
    found = [_quality_of(evidence, name) for name in names]
    return min((one for one in found if one is not None), key=lambda one: one.value, default=None)


def _quality_of(evidence: Evidence, name: str) -> Quality | None:
    """None where the output is no float."""
    original = evidence.original
    reference, actual = evidence.reference[name], evidence.winner.answers[name]
    held_out = bool(original.held_out)
    if not np.issubdtype(reference.dtype, np.floating):
        return None
    if original.labels and len(original.labels) == len(actual):
        return evaluate_accuracy(original.labels, actual, reference, held_out=held_out)
    task = original.postprocess.kind if original.postprocess else "other"
    return evaluate_agreement(reference, actual, task=task, held_out=held_out)


def _layers(evidence: Evidence) -> tuple[Layer, ...]:
    record = evidence.winner.model.quantization
    if record is None or evidence.original.onnx_path is not None:
        return ()
    quantized = set(record.layers)
    order = {node.name: index for index, node in enumerate(evidence.folded.graph.graph.nodes)}
    rows = sorted(worst_layers(evidence.winner.base, evidence.winner.model), key=lambda row: order.get(row[0], 0))
    return tuple(
        Layer(name=name, sqnr_db=sqnr, precision=record.method if name in quantized else "fp32") for name, sqnr in rows
    )


def _latency(evidence: Evidence, p50_ms: float, p95_ms: float, runs: int) -> Latency:
    """`host` is the number that the candidates were compared by, so that ratio and table agree."""
    winner, twin = evidence.winner, evidence.float_twin
    host = winner.host_ms if winner.host_ms is not None else p50_ms
    float_host = twin.host_ms if twin is not None else None
    predicted = () if winner.device is None else (_predicted(evidence.device, winner),)
    return Latency(
        host=host,
        host_p95=p95_ms,
        float_host=float_host,
        whole_host=next(
            (one.host_ms for one in evidence.whole if one.candidate.precision == winner.candidate.precision), None
        ),
        speedup=float_host / host if float_host else None,
        threads=evidence.threads,
        isa=isa(),
        runs=runs,
        predicted=predicted,
    )


def _predicted(device: Device, built: Built) -> Predicted:
    assert built.device is not None
    return Predicted(
        device=device.name, p50=built.device.latency_ms, low=built.device.low_ms, high=built.device.high_ms
    )


def _roofline(built: Built, device: Device) -> Roofline | None:
    if built.device is None:
        return None
    lines = roofs(device, built.candidate.format)
    points = tuple(
        RooflinePoint(
            name=time.name,
            kind=time.kind,
            precision=time.precision,
            flop_per_byte=time.intensity,
            gflops=time.gflops,
            milliseconds=time.latency_ms,
        )
        for time in built.device.by_segment
        if time.gflops > 0
    )
    return Roofline(
        device=device.name,
        unit=device.unit_for(built.candidate.format).name,
        bandwidth_gbps=lines[0].bandwidth_gbps,
        peaks_gflops={line.precision: line.peak_gflops for line in lines},
        points=points,
    )


def _energy(built: Built, device: Device) -> Energy | None:
    known = energy(built.device.latency_ms, device) if built.device is not None else None
    if known is None:
        return None
    return Energy(energy_mj=known.total_mj, method=f"{known.load_w:g} W under load x predicted latency")


def _candidate(one: Built, chosen: bool) -> Candidate:
    return Candidate(
        format=one.candidate.format,
        precision=one.candidate.precision,
        chosen=chosen,
        why_not="" if chosen else one.why_not,
        sqnr_db=one.quality.sqnr_db if one.quality else None,
        agreement=one.quality.top1_agreement if one.quality else None,
        host_p50_ms=one.host_ms,
        predicted_ms=one.device.latency_ms if one.device else None,
        predicted_low_ms=one.device.low_ms if one.device else None,
        predicted_high_ms=one.device.high_ms if one.device else None,
        size_bytes=one.artifact.size_bytes if one.artifact else None,
    )


def _whole(one: Built) -> Candidate:
    entry = _candidate(one, chosen=False)
    return entry.model_copy(update={"whole": True, "why_not": one.why_not or "the whole model, to compare with"})


def _previews(original: Model, session: Session, folded: Model) -> tuple[dict[str, float], tuple[Sample, ...]]:
    """Stage medians in ms over the preview files, and what artifact and float model say of each."""
    if not original.previews or original.preprocess is None:
        return {}, ()
    feeder = make_feeder(original.preprocess, session.inputs, original.tokenizer)
    laps: list[dict[str, float]] = []
    samples: list[Sample] = []
    for path in original.previews[:PREVIEWS]:
        prediction = timed_prediction(feeder, session, original.postprocess, path)
        laps.append(prediction.latency_ms)
        if not prediction.top:
            continue
        feeds = {name: torch.from_numpy(value) for name, value in feeder(path).items()}
        answers = {name: value.numpy() for name, value in folded.forward(feeds).items()}
        samples.append(
            Sample(
                name=path.name,
                thumbnail=_thumbnail(path),
                top=prediction.top,
                float_top=top_labels(answers, original.postprocess, 5),
            )
        )
    stages = {stage: statistics.median(lap[stage] for lap in laps) for stage in laps[0]}
    return stages, tuple(samples)


def _thumbnail(path: Path) -> str:
    image = decode_image(path)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _host() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()

"""A configuration as what it really is: pruned, captured, quantized, exported, run in its runtime, judged and timed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from edgekit.candidates import Bench, time_in_turns
from edgekit.costs import peak_activation_bytes
from edgekit.devices.energy import energy as energy_of
from edgekit.evaluation.intervals import share_difference
from edgekit.model import Model
from edgekit.parity import Limits, Outputs, Step, judge, judged_samples, run_model, run_session
from edgekit.quantization import Fallback
from edgekit.quantizers.quantize import FLOAT
from edgekit.runtimes.session import SessionOptions
from edgekit.search.knobs import energy
from edgekit.search.space import Configuration, Family
from edgekit.search.workshop import Workshop
from edgekit.selection import HOST_UNIT, Built, Candidate

logger = logging.getLogger("edgekit")

GATE = 128


@dataclass(frozen=True)
class Verified:
    """`error`: energy of the change. `drop` in points, `low` to `high` its 95 % interval. `latency_ms` on the device:
    what is predicted of the artifact, brought halfway (geometrically) to its latency here over the float artifact's.
    `failed`: why there is no artifact; the figures are then infinite."""

    configuration: Configuration
    error: float = np.inf
    drop: float = np.inf
    low: float = np.inf
    high: float = np.inf
    latency_ms: float = np.inf
    predicted_ms: float = np.inf
    host_ms: float = np.inf
    size_bytes: float = np.inf
    memory_bytes: float = np.inf
    energy_mj: float | None = None
    bytes_sent: float = 0.0
    expected: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""

    def figures(self) -> dict[str, float | None]:
        """By the names that limits have."""
        return {
            "latency_ms": self.latency_ms,
            "size_bytes": self.size_bytes,
            "memory_bytes": self.memory_bytes,
            "energy_mj": self.energy_mj,
            "bytes_sent": self.bytes_sent,
            "drop": self.drop,
        }

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        del row["configuration"]
        return {**{k: v for k, v in row.items() if v != np.inf}, "configuration": self.configuration.to_json()}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Verified:
        return cls(**{**row, "configuration": Configuration.from_json(row["configuration"])})


@dataclass(frozen=True)
class Made:
    """`bench`: what built it, with the answers that it was judged by."""

    verified: Verified
    built: Built
    bench: Bench
    steps: tuple[Step, ...]


class Verifier:
    """Judges on the held-out samples of the original model, which no knob was set on."""

    def __init__(self, workshop: Workshop, before: Outputs | None = None, min_sqnr: float | None = None) -> None:
        """`before`: the answers from which the quality is counted; None: those of the original model."""
        self.workshop, self.min_sqnr = workshop, min_sqnr
        self._twins: dict[str, Made] = {}
        self._before = before
        self._folders = 0

    @property
    def before(self) -> Outputs:
        """What the quality is counted from."""
        if self._before is None:
            prepared = self.workshop.prepared()[0]
            self._before = run_model(prepared, judged_samples(prepared))
        return self._before

    def twin(self, format: str) -> Made:
        """The whole model in float: what everything of its format is timed against."""
        if format not in self._twins:
            self._twins[format] = self._make(Configuration(Family(format, FLOAT)))
        return self._twins[format]

    def verify(self, configuration: Configuration, expected: Mapping[str, float]) -> Made:
        twin = self.twin(configuration.family.format)
        made = twin if configuration == twin.verified.configuration else self._make(configuration)
        if made.built.artifact is None or twin.built.artifact is None:
            return replace(made, verified=replace(made.verified, expected=expected))
        host, twin_host = self._in_turns(made, twin) if made is not twin else (twin.built.host_ms, twin.built.host_ms)
        assert host is not None and twin_host is not None and made.built.device is not None
        predicted = made.built.device.latency_ms
        latency = predicted
        assert twin.built.device is not None
        if self.workshop.device.unit_for(configuration.family.format).name == HOST_UNIT:
            latency = float(np.sqrt(predicted * twin.built.device.latency_ms * host / twin_host))
        spent = energy_of(latency, self.workshop.device)
        verified = replace(
            made.verified,
            latency_ms=latency,
            predicted_ms=predicted,
            host_ms=host,
            energy_mj=None if spent is None else spent.total_mj,
            expected=expected,
        )
        built = replace(made.built, host_ms=host, device=made.built.device.scaled(latency / predicted))
        return replace(made, verified=verified, built=built)

    def _make(self, configuration: Configuration) -> Made:
        family, workshop = configuration.family, self.workshop
        self._folders += 1
        folder = workshop.folder / f"candidate-{self._folders}"
        folder.mkdir(parents=True)
        model, steps = workshop.prepared(family.variant, family.method, configuration.keep, configuration.shape)
        groups = workshop.groups(family.variant, family.method, configuration.keep, configuration.shape)
        kept = tuple(
            Fallback(layer, "float32", "the search keeps it in float")
            for group in groups
            if group.name in configuration.floats
            for layer in group.layers
        )
        gate, before = _few(model, self.before)
        bench = Bench(
            model=gate,
            device=workshop.device,
            limits=Limits(None, None),
            options=workshop.options,
            folder=folder,
            threads=workshop.threads,
            progress=workshop.progress,
            keep=kept if family.precision != FLOAT else (),
            original=before,
        )
        candidate = Candidate(family.format, family.precision, asked=True)
        built = bench.build(candidate, workshop.exporters[family.format])
        if built.artifact is not None and not built.why_not:
            workshop.progress(f"judge {configuration}", 0, 0)
            with built.artifact.open(built.model, SessionOptions(threads=workshop.threads)) as session:
                answers = run_session(session, judged_samples(model))
            built = replace(built, answers=answers, quality=judge(model, self.before, answers))
        bench = replace(bench, model=model, original=self.before)
        return Made(self._judge(configuration, built, model), built, bench, steps)

    def _judge(self, configuration: Configuration, built: Built, model: Model) -> Verified:
        if built.why_not or built.artifact is None or built.quality is None:
            return Verified(configuration, failed=built.why_not or "no artifact")
        violation = built.quality.violation(Limits(None, self.min_sqnr))
        if violation is not None:
            return Verified(configuration, failed=violation)
        drop, low, high = _interval(model, self.before, built.answers, built.quality.drop)
        return Verified(
            configuration,
            error=energy(self.before, built.answers),
            drop=drop,
            low=low,
            high=high,
            size_bytes=float(built.artifact.size_bytes),
            memory_bytes=float(built.artifact.size_bytes + peak_activation_bytes(built.model)),
        )

    def _in_turns(self, *made: Made) -> list[float]:
        pairs = [(one.built.artifact, one.built.model) for one in made if one.built.artifact is not None]
        return time_in_turns(pairs, self.workshop.threads)


def _few(model: Model, before: Outputs) -> tuple[Model, Outputs]:
    """`model` with few held-out samples and the answers to them: each step of the build is compared on these."""
    count = len(model.held_out)
    if count <= GATE:
        return model, before
    rows = {name: len(value) * GATE // count for name, value in before.items()}
    few = model.evolve_quietly(held_out=model.held_out[:GATE], labels=model.labels[:GATE])
    return few, {name: value[: rows[name]] for name, value in before.items()}


def _interval(model: Model, before: Outputs, answers: Outputs, drop: float) -> tuple[float, float, float]:
    """(drop, low, high) in points; where labels are known a paired interval, else what the samples scatter."""
    primary = model.postprocess.output if model.postprocess else next(iter(before))
    want, got = before[primary], answers[primary]
    if len(model.labels) == len(want) and model.postprocess and model.postprocess.kind == "classification":
        truth = np.asarray(model.labels)
        found = share_difference(want.argmax(-1) == truth, got.argmax(-1) == truth)
        return drop, 100 * found.low, 100 * found.high
    unlabelled = model.evolve_quietly(labels=())
    losses = [judge(unlabelled, {primary: want[i : i + 1]}, {primary: got[i : i + 1]}).drop for i in range(len(want))]
    spread = 1.96 * float(np.std(losses)) / np.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return drop, max(0.0, drop - spread), drop + spread

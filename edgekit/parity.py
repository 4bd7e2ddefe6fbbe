"""The parity gate: outputs on real data, compared at each step from the eager module to the artifact in its runtime.

Nothing wrong is shipped silently: past the limits the first bad layer is found and kept in higher precision, and
where that does not help the export is refused with the layers to blame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from edgekit.errors import NumericsError
from edgekit.model import Model, Sample
from edgekit.report.metrics import cosine, expected_drop, sqnr_db, top1_agreement
from edgekit.runtimes.session import Session

Outputs = dict[str, np.ndarray]

# Rounding in another order: what separates float32 kernels of the same graph stays above this on trained models.
FLOAT_SQNR_DB = 50.0
# How much an int8 kernel's own rounding may cost against the same scales simulated in torch.
RUNTIME_LOSS_DB = 3.0

# The cosine of rows of one number is the agreement of their signs, whatever their sizes.
SHORTEST_ROW = 8


@dataclass(frozen=True)
class Limits:
    """`max_drop` in points: of accuracy where labels are known, of expected accuracy for a classifier without,
    of 100 x (1 - cosine) for anything else. `min_sqnr_db` on the worst output. None: no such limit."""

    max_drop: float | None = 1.0
    min_sqnr_db: float | None = None


@dataclass(frozen=True)
class Quality:
    """An artifact or graph against the float model on `samples` inputs that calibration did not see."""

    sqnr_db: float
    drop: float
    cosine: float
    samples: int
    reference: str
    top1_agreement: float | None = None
    accuracy: float | None = None
    reference_accuracy: float | None = None

    def violation(self, limits: Limits) -> str | None:
        """Which limit is broken and by how much, or None."""
        if math.isnan(self.sqnr_db):
            return "outputs hold NaN"
        if limits.max_drop is not None and self.drop > limits.max_drop:
            return f"drop {self.drop:.2f} points, allowed {limits.max_drop:g}"
        if limits.min_sqnr_db is not None and self.sqnr_db < limits.min_sqnr_db:
            return f"SQNR {self.sqnr_db:.1f} dB, allowed {limits.min_sqnr_db:g}"
        return None


@dataclass(frozen=True)
class Step:
    """One comparison of the gate: `name` against the step before it."""

    name: str
    sqnr_db: float
    max_abs: float


def judged_samples(model: Model) -> tuple[Sample, ...]:
    """The held-out samples; the calibration's or the example where there are none."""
    return model.held_out or model.calibration or (model.example_inputs,)


def run_model(model: Model, samples: Sequence[Sample]) -> Outputs:
    """Outputs by name, samples concatenated along the first dimension; batches of 16 where the batch is dynamic."""
    if _has_dynamic_batch(model):
        samples = [_stack(samples[start : start + 16]) for start in range(0, len(samples), 16)]
    rows = [model.forward(sample) for sample in samples]
    return {name: _join([row[name].numpy() for row in rows]) for name in rows[0]}


def run_session(session: Session, samples: Sequence[Sample]) -> Outputs:
    """Like `run_model`, one sample at a time, in the artifact's own runtime. Raises NumericsError for NaN."""
    rows = [session.run({name: value.numpy() for name, value in sample.items()}) for sample in samples]
    outputs = {name: _join([row[name] for row in rows]) for name in rows[0]}
    for name, value in outputs.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise NumericsError(f"output {name!r} of the {session.format} artifact holds NaN or infinity")
    return outputs


def _has_dynamic_batch(model: Model) -> bool:
    return bool(model.dynamic) and all(0 in model.dynamic.get(name, {}) for name in model.example_inputs)


def _stack(samples: Sequence[Sample]) -> Sample:
    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


def _join(rows: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([row.reshape(1, *row.shape) if row.ndim == 0 else row for row in rows])


def compare(name: str, reference: Outputs, actual: Outputs) -> Step:
    """The worst floating-point output of the two."""
    pairs = _float_pairs(reference, actual)
    if not pairs:
        equal = all(np.array_equal(reference[key], actual[key]) for key in reference)
        return Step(name, math.inf if equal else -math.inf, 0.0 if equal else math.inf)
    return Step(
        name,
        min(sqnr_db(want, got) for want, got in pairs),
        max(float(np.abs(want - got).max()) for want, got in pairs),
    )


def _float_pairs(reference: Outputs, actual: Outputs) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(reference[key], actual[key]) for key in reference if np.issubdtype(reference[key].dtype, np.floating)]


def _closeness(want: np.ndarray, got: np.ndarray) -> float:
    """The cosine by row; over all rows at once where a row is too short to have a direction of its own."""
    if not np.issubdtype(want.dtype, np.floating):
        return float(np.array_equal(want, got))
    short = want[0].size < SHORTEST_ROW
    return cosine(want.reshape(1, -1), got.reshape(1, -1)) if short else cosine(want, got)


def judge(model: Model, reference: Outputs, actual: Outputs) -> Quality:
    """Quality of `actual` against `reference`: a classifier is judged by its classes, anything else by the cosine of
    its worst output."""
    primary = model.postprocess.output if model.postprocess else next(iter(reference))
    step = compare("", reference, actual)
    want, got = reference[primary], actual[primary]
    closeness = min(_closeness(value, actual[name]) for name, value in reference.items())
    quality = Quality(step.sqnr_db, 100 * (1 - closeness), closeness, len(want), "float model")
    if not (model.postprocess and model.postprocess.kind == "classification"):
        return quality
    quality = replace(quality, drop=expected_drop(want, got), top1_agreement=top1_agreement(want, got))
    if len(model.labels) == len(want):
        truth = np.asarray(model.labels)
        accuracy, before = (float((rows.argmax(-1) == truth).mean()) for rows in (got, want))
        quality = replace(quality, drop=100 * (before - accuracy), accuracy=accuracy, reference_accuracy=before)
    return quality

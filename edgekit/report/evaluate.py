"""Quality from arrays: what an artifact answered against the float model or against labels. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.errors import DataError
from edgekit.report.metrics import cosine, sqnr_db, top1_agreement, wilson_interval
from edgekit.report.model import Quality


def evaluate_agreement(
    reference: np.ndarray, actual: np.ndarray, *, task: str, reference_name: str = "float model", held_out: bool = True
) -> Quality:
    """Both [N, ...], row by row the same sample. `task` "classification" is judged by top-1 agreement, "embedding" by
    cosine, anything else by SQNR. Raises DataError for shapes that differ, no rows, or values that are not finite."""
    _check_pair(reference, actual)
    count = len(reference)
    noise_db = sqnr_db(reference, actual)
    if task == "classification":
        share = top1_agreement(_rows(reference), _rows(actual))
        low, high = wilson_interval(share, count)
        return Quality(
            measure="top1_agreement",
            value=share,
            low=low,
            high=high,
            samples=count,
            reference=reference_name,
            held_out=held_out,
            sqnr_db=noise_db,
            top1_agreement=share,
        )
    near = cosine(reference, actual)
    if task == "embedding":
        interval = _mean_interval(_row_cosines(reference, actual))
        return Quality(
            measure="cosine",
            value=near,
            low=interval[0],
            high=interval[1],
            samples=count,
            reference=reference_name,
            held_out=held_out,
            sqnr_db=noise_db,
            cosine=near,
        )
    return Quality(
        measure="sqnr_db",
        value=noise_db,
        samples=count,
        reference=reference_name,
        held_out=held_out,
        sqnr_db=noise_db,
        cosine=near,
    )


def evaluate_accuracy(
    labels: Sequence[int] | np.ndarray,
    actual: np.ndarray,
    reference: np.ndarray | None = None,
    *,
    held_out: bool = True,
) -> Quality:
    """`labels` [N] against the scores `actual` [N, classes]; `reference` [N, classes], the float model's, adds its own
    accuracy and the agreement. Raises DataError."""
    truth = np.asarray(labels)
    if truth.ndim != 1 or len(truth) != len(actual) or not len(truth):
        raise DataError(
            f"{list(truth.shape)} labels for {len(actual)} answers, allowed one each and at least one",
            hint="give one label for each sample",
        )
    scores = _rows(actual)
    if truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise DataError(
            f"labels from {truth.min()} to {truth.max()}, allowed 0 to {scores.shape[1] - 1}",
            hint="labels count from zero in the order of the model's classes",
        )
    _check_finite(actual)
    if reference is not None:
        _check_pair(reference, actual)
    share = accuracy(truth, scores)
    low, high = wilson_interval(share, len(truth))
    return Quality(
        measure="accuracy",
        value=share,
        low=low,
        high=high,
        samples=len(truth),
        reference="labels",
        held_out=held_out,
        sqnr_db=None if reference is None else sqnr_db(reference, actual),
        top1_agreement=None if reference is None else top1_agreement(_rows(reference), scores),
        float_accuracy=None if reference is None else accuracy(truth, _rows(reference)),
    )


def accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of rows of `scores`, [N, classes], whose largest class is the label, [N]."""
    return float((scores.argmax(-1) == labels).mean())


def _rows(scores: np.ndarray) -> np.ndarray:
    return scores.reshape(len(scores), -1)


def _row_cosines(reference: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """[N]."""
    return np.asarray([cosine(reference[row : row + 1], actual[row : row + 1]) for row in range(len(reference))])


def _mean_interval(values: np.ndarray, z: float = 1.96) -> tuple[float | None, float | None]:
    """The normal interval of a mean, clipped to what a cosine can be; none from a single value."""
    if len(values) < 2:
        return None, None
    spread = z * float(values.std(ddof=1)) / len(values) ** 0.5
    return max(-1.0, float(values.mean()) - spread), min(1.0, float(values.mean()) + spread)


def _check_pair(reference: np.ndarray, actual: np.ndarray) -> None:
    if reference.shape != actual.shape or reference.ndim < 1 or reference.size == 0:
        raise DataError(
            f"reference {list(reference.shape)} against {list(actual.shape)}, allowed equal shapes and one row or more",
            hint="run both on the same samples, in the same order",
        )
    _check_finite(reference)
    _check_finite(actual)


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise DataError("answers hold NaN or infinity", hint="find the layer with `edgekit export --min-sqnr`")

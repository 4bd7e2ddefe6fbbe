"""When an early answer may stand: confidence, its calibration, and how far any rule could get.

Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks" (2017), section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.bundle.manifest import Exit, ExitPoint
from edgekit.errors import DataError

THRESHOLDS = 64
_LOG_T_RANGE = (-3.0, 3.0)  # temperatures from 1/20 to 20


def confidence(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """[..., classes] -> [...] float64: the largest softmax(logits / temperature). Raises DataError for NaN."""
    scaled = logits.astype(np.float64) / temperature
    largest = scaled.max(-1, keepdims=True)
    if not np.isfinite(largest).all():
        raise DataError("the exit's logits hold NaN or infinity", hint="check the exit part with `edgekit evaluate`")
    sure: np.ndarray = 1.0 / np.exp(scaled - largest).sum(-1)
    return sure


@dataclass(frozen=True)
class Elasticity:
    """At `threshold`: how much accuracy going up buys for its cost, both relative to answering everything at the exit.

    `ratio` = `gain` / `cost`: 0.5 means that 10 % more cost bought 5 % more accuracy; None where nothing goes up.
    """

    threshold: float
    gain: float
    cost: float
    ratio: float | None


@dataclass(frozen=True)
class ExitCalibration:
    """`curve` from the lowest threshold to the highest; `threshold` is the lowest whose drop is within the limit.

    Shares of 1: `exit_accuracy` (everything leaves), `upper_accuracy` (nothing leaves), and the bound of every rule,
    `oracle_accuracy` at `oracle_answered`: only what the exit has wrong and the upper model right goes up.
    """

    temperature: float
    threshold: float
    curve: tuple[ExitPoint, ...]
    elasticity: tuple[Elasticity, ...]
    exit_accuracy: float
    upper_accuracy: float
    oracle_accuracy: float
    oracle_answered: float

    def to_exit(self, part: str) -> Exit:
        return Exit(part=part, temperature=self.temperature, threshold=self.threshold, curve=self.curve)


def calibrate_exit(
    logits: np.ndarray,
    upper_logits: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    max_drop: float = 0.5,
    exit_cost: float = 1.0,
    upper_cost: float = 1.0,
) -> ExitCalibration:
    """`logits`, `upper_logits` float [N, classes] of the exit and of what lies above; `labels` int [N], without which
    the upper model is the teacher and counts as right.

    `max_drop` in points against the upper model. `exit_cost` is paid by every sample, `upper_cost` by those that go up,
    in any one unit (ms, bytes, tokens). Raises DataError for arrays that do not fit.
    """
    targets = upper_logits.argmax(-1) if labels is None else np.asarray(labels)
    if logits.ndim != 2 or logits.shape != upper_logits.shape or targets.shape != logits.shape[:1] or not len(logits):
        raise DataError(
            f"logits {list(logits.shape)}, upper logits {list(upper_logits.shape)}, labels {list(targets.shape)}, "
            "allowed [N, classes] twice and [N], N from 1"
        )
    temperature = fit_temperature(logits, targets)
    sure = confidence(logits, temperature)
    right, upper_right = logits.argmax(-1) == targets, upper_logits.argmax(-1) == targets
    upper_accuracy = float(upper_right.mean())
    curve = [_point(t, sure, right, upper_right) for t in _thresholds(sure)]
    fitting = [point.threshold for point in curve if point.drop <= max_drop]
    goes_up = upper_right & ~right
    return ExitCalibration(
        temperature=temperature,
        threshold=min(fitting, default=curve[-1].threshold),
        curve=tuple(curve),
        elasticity=tuple(_elasticities(curve, float(right.mean()), upper_accuracy, exit_cost, upper_cost)),
        exit_accuracy=float(right.mean()),
        upper_accuracy=upper_accuracy,
        oracle_accuracy=float((right | upper_right).mean()),
        oracle_answered=1.0 - float(goes_up.mean()),
    )


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature at which softmax(logits / T) gives `targets` (int [N]) the least mean negative log-likelihood.

    Golden-section search over log T: the likelihood is convex in 1 / T.
    """
    scores = logits.astype(np.float64)
    rows = np.arange(len(scores))

    def loss(log_t: float) -> float:
        scaled = scores / np.exp(log_t)
        shifted = scaled - scaled.max(-1, keepdims=True)
        return float((np.log(np.exp(shifted).sum(-1)) - shifted[rows, targets]).mean())

    golden = (np.sqrt(5.0) - 1) / 2
    low, high = _LOG_T_RANGE
    left, right = high - golden * (high - low), low + golden * (high - low)
    left_loss, right_loss = loss(left), loss(right)
    while high - low > 1e-4:
        if left_loss <= right_loss:
            high, right, right_loss = right, left, left_loss
            left = high - golden * (high - low)
            left_loss = loss(left)
        else:
            low, left, left_loss = left, right, right_loss
            right = low + golden * (high - low)
            right_loss = loss(right)
    return float(np.exp((low + high) / 2))


def calibration_error(sure: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error (Guo et al., section 2): |accuracy - confidence| over `bins` of equal width,
    weighted by how many fall into each. `sure` float [N] in 0 to 1, `right` bool [N]."""
    place = np.minimum((np.asarray(sure) * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=np.asarray(right, float) - sure, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))


def _thresholds(sure: np.ndarray) -> Sequence[float]:
    """Quantiles of the confidences, and one above all of them: there nothing leaves."""
    quantiles = np.unique(np.quantile(sure, np.linspace(0, 1, THRESHOLDS), method="lower"))
    return [*map(float, quantiles), float(np.nextafter(quantiles[-1], np.inf))]


def _point(threshold: float, sure: np.ndarray, right: np.ndarray, upper_right: np.ndarray) -> ExitPoint:
    leaves = sure >= threshold
    accuracy = np.where(leaves, right, upper_right).mean()
    return ExitPoint(
        threshold=threshold,
        answered=float(leaves.mean()),
        drop=float(100 * (upper_right.mean() - accuracy)),
    )


def _elasticities(
    curve: Sequence[ExitPoint], exit_accuracy: float, upper_accuracy: float, exit_cost: float, upper_cost: float
) -> list[Elasticity]:
    rows = []
    for point in curve:
        accuracy = upper_accuracy - point.drop / 100
        gain = (accuracy - exit_accuracy) / exit_accuracy if exit_accuracy else 0.0
        cost = (1 - point.answered) * upper_cost / exit_cost if exit_cost else 0.0
        rows.append(Elasticity(point.threshold, gain, cost, gain / cost if cost else None))
    return rows

"""What settings do together: an additive model with a multiplier for each kind of figure, and points from error.

Error energies of settings that know nothing of each other add up; so do the latencies of parts that run one after
another. Where measurements of whole configurations disagree, the multipliers of the kinds at work are refitted, drawn
towards 1 so that a kind seen once is not believed blindly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# How strongly a multiplier is held at 1, in squared logarithms.
PULL = 0.02
LEAST, MOST = 0.1, 10.0


def fit_multipliers(
    terms: Sequence[Mapping[str, float]], measured: Sequence[float], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Multipliers by kind for which `terms` (by kind, one mapping a measurement) add up to `measured`.

    min over m in [0.1, 10] of  sum_i w_i log(sum_k m_k t_ik / y_i)^2 + PULL sum_k log(m_k)^2

    Logarithms, as a model that expects a tenth is as wrong as one that expects tenfold.
    """
    from scipy.optimize import least_squares

    weights = weights if weights is not None else [1.0] * len(terms)
    rows = [
        one for one in zip(terms, measured, weights, strict=True) if one[1] > 0 and any(v > 0 for v in one[0].values())
    ]
    kinds = sorted({kind for row, _, _ in rows for kind, value in row.items() if value > 0})
    if not kinds:
        return {}
    root = np.sqrt([weight for _, _, weight in rows])
    wanted = np.array([value for _, value, _ in rows])
    matrix = np.array([[max(0.0, row.get(kind, 0.0)) for kind in kinds] for row, _, _ in rows])

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.concatenate([root * np.log(matrix @ np.exp(logs) / wanted), np.sqrt(PULL) * logs])

    def slopes(logs: np.ndarray) -> np.ndarray:
        parts = matrix * np.exp(logs)
        return np.vstack([root[:, None] * parts / parts.sum(1, keepdims=True), np.sqrt(PULL) * np.eye(len(kinds))])

    solved = least_squares(residuals, np.zeros(len(kinds)), slopes, bounds=(np.log(LEAST), np.log(MOST)))
    return {kind: float(value) for kind, value in zip(kinds, np.exp(solved.x), strict=True)}


@dataclass(frozen=True)
class Curve:
    """Points lost over error energy: straight between knots that never fall, through (0, 0), and on beyond the last
    at its slope."""

    errors: tuple[float, ...]
    points: tuple[float, ...]

    def __call__(self, error: float) -> float:
        if len(self.errors) < 2:
            return 0.0
        if error > self.errors[-1]:
            rise = (self.points[-1] - self.points[0]) / (self.errors[-1] - self.errors[0])
            return self.points[-1] + rise * (error - self.errors[-1])
        return float(np.interp(error, self.errors, self.points))

    def largest(self, points: float) -> float:
        """The most error that costs no more than `points`; infinity where any does."""
        if len(self.errors) < 2 or self.points[-1] <= 0:
            return np.inf
        if points >= self.points[-1]:
            rise = (self.points[-1] - self.points[0]) / (self.errors[-1] - self.errors[0])
            return self.errors[-1] + (points - self.points[-1]) / rise
        above = next(index for index, value in enumerate(self.points) if value > points)
        if above == 0:
            return 0.0
        low, high = self.points[above - 1], self.points[above]
        share = (points - low) / (high - low)
        return self.errors[above - 1] + share * (self.errors[above] - self.errors[above - 1])


def fit_curve(errors: Sequence[float], points: Sequence[float], weights: Sequence[float]) -> Curve:
    """Isotonic regression (pool adjacent violators; Barlow et al. 1972) through (0, 0); each pool is flat."""
    pools: list[tuple[float, float, float, float]] = [(0.0, 0.0, 0.0, 1e9)]  # first and last error, points, weight
    for error, value, weight in sorted(zip(errors, points, weights, strict=True)):
        pools.append((error, error, value, weight))
        while len(pools) > 1 and pools[-1][2] <= pools[-2][2]:
            (_, last, value, weight), (first, _, below, others) = pools.pop(), pools.pop()
            mean = (value * weight + below * others) / (weight + others)
            pools.append((first, last, mean, weight + others))
    knots = [(error, max(value, 0.0)) for first, last, value, _ in pools for error in dict.fromkeys((first, last))]
    return Curve(tuple(error for error, _ in knots), tuple(value for _, value in knots))


# What a verified artifact counts beside a knob measured on calibration samples.
VERIFIED_WEIGHT = 20.0
# In points squared: how much must be seen before the level of the calibration samples is given up.
LEVEL_PULL = 0.05


def joint_curve(knobs: Sequence[tuple[float, float]], verified: Sequence[tuple[float, float]]) -> Curve:
    """Of (error, points): its shape from the many knobs, brought to the level of what was verified on other samples."""
    shape = fit_curve([error for error, _ in knobs], [points for _, points in knobs], [1.0] * len(knobs))
    pairs = [(points, shape(error)) for error, points in verified]
    level = (sum(a * b for a, b in pairs) + LEVEL_PULL) / (sum(b * b for _, b in pairs) + LEVEL_PULL)
    level = min(MOST, max(LEAST, level))
    rows = [(error, level * points, 1.0) for error, points in knobs]
    rows += [(error, points, VERIFIED_WEIGHT) for error, points in verified]
    return fit_curve([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])

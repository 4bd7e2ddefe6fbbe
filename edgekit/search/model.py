"""What settings do together: an additive model with a multiplier for each kind of figure, and points from error.

Error energies of settings that know nothing of each other add up; so do the latencies of parts that run one after
another. Where measurements of whole configurations disagree, the multipliers of the kinds at work are refitted, drawn
towards 1 so that a kind seen once is not believed blindly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# How strongly a multiplier is held at 1, in squared relative errors.
PULL = 0.02
LEAST, MOST = 0.1, 10.0


def fit_multipliers(
    terms: Sequence[Mapping[str, float]], measured: Sequence[float], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Multipliers by kind for which `terms` (by kind, one mapping a measurement) add up to `measured`.

    min over m in [0.1, 10] of  sum_i w_i ((sum_k m_k t_ik - y_i) / y_i)^2 + PULL sum_k (m_k - 1)^2
    """
    from scipy.optimize import lsq_linear

    weights = weights if weights is not None else [1.0] * len(terms)
    rows = [one for one in zip(terms, measured, weights, strict=True) if one[1] > 0]
    kinds = sorted({kind for row, _, _ in rows for kind, value in row.items() if value > 0})
    if not kinds:
        return {}
    root = np.sqrt([weight for _, _, weight in rows])
    matrix = np.array([[row.get(kind, 0.0) / value for kind in kinds] for row, value, _ in rows]) * root[:, None]
    pull = np.sqrt(PULL) * np.eye(len(kinds))
    wanted = np.concatenate([root, np.sqrt(PULL) * np.ones(len(kinds))])
    solved = lsq_linear(np.vstack([matrix, pull]), wanted, bounds=(LEAST, MOST))
    return {kind: float(value) for kind, value in zip(kinds, solved.x, strict=True)}


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

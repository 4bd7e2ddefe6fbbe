"""Do scores order pairs as they should? Two rank statistics, ties averaged."""

from __future__ import annotations

import numpy as np

from edgekit.errors import DataError


def average_ranks(values: np.ndarray) -> np.ndarray:
    """float64 [N] from 1; equal values share the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: np.ndarray = (last - (counts - 1) / 2)[inverse]
    return shared


def spearman(scores: np.ndarray, wanted: np.ndarray) -> float:
    """The correlation of the ranks of two sequences [N] (Spearman 1904), -1 to 1; 0 where one of them is constant.

    Raises DataError for fewer than two, or unequal lengths.
    """
    if scores.shape != wanted.shape or scores.ndim != 1 or len(scores) < 2:
        raise DataError(f"scores {scores.shape} against {wanted.shape}, allowed the same length of two and more")
    first, second = (average_ranks(values) - (len(values) + 1) / 2 for values in (scores, wanted))
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / size) if size else 0.0


def pair_auc(scores: np.ndarray, related: np.ndarray) -> float:
    """The chance that a related pair scores above an unrelated one (Mann and Whitney 1947); a tie counts half.

    `scores` [N], `related` bool [N]. Raises DataError where one of the two kinds is missing.
    """
    if scores.shape != related.shape or related.dtype != np.bool_ or scores.ndim != 1:
        raise DataError(f"scores {scores.shape} and related {related.dtype} {related.shape}, allowed [N] and bool [N]")
    good = int(related.sum())
    bad = len(related) - good
    if not good or not bad:
        raise DataError(f"{good} related and {bad} unrelated pairs, allowed one and more of each")
    above = float(average_ranks(scores)[related].sum()) - good * (good + 1) / 2
    return above / (good * bad)

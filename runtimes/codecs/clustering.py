"""Histograms that look alike share a table: Lloyd's algorithm with bits for a distance.

The distance of a histogram to a class is what it costs with the class's table (entropy-constrained clustering: Chou,
Lookabaugh and Gray, IEEE Trans. ASSP 37(1), 1989).
"""

from __future__ import annotations

import numpy as np

ITERATIONS = 8


def cluster_histograms(histograms: np.ndarray, middle: int, classes: int) -> np.ndarray:
    """int64 [n]: the class of each histogram [n, bins], at most `classes` of them, numbered without gaps.

    `middle`: the bin of the symbol 0; classes start out as ranges of the mean distance to it.
    """
    bins = histograms.shape[1]
    distance = np.abs(np.arange(bins) - middle).astype(np.float32)
    label = _start(histograms @ distance / np.maximum(histograms.sum(1), 1), classes)
    for _ in range(ITERATIONS):
        order = np.argsort(label, kind="stable")
        starts = np.flatnonzero(np.diff(label[order], prepend=-1))
        totals = np.add.reduceat(histograms[order], starts, axis=0, dtype=np.float64)
        totals += 0.01 + 1e-4 * totals.sum(1, keepdims=True) / bins
        bits = -np.log2(totals / totals.sum(1, keepdims=True)).astype(np.float32)
        label = np.unique((histograms @ bits.T).argmin(1), return_inverse=True)[1]
    return label


def _start(spread: np.ndarray, classes: int) -> np.ndarray:
    """Classes by spread, about as many bits in each: int64 [n]."""
    order = np.argsort(spread, kind="stable")
    weight = np.cumsum(np.log2(1 + 4 * spread[order]) + 1e-3)
    label = np.empty(len(spread), np.int64)
    label[order] = np.minimum(weight / weight[-1] * classes, classes - 1).astype(np.int64)
    return np.unique(label, return_inverse=True)[1]

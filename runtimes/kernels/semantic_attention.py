"""Attention among tokens sorted by meaning: near clusters token by token, the others through their centroids.

    rows      queries sorted by their k-means cluster, in runs of `block`
    columns   keys sorted by their k-means cluster, a column for each cluster c of n_c keys with mean m_c
    named     for row r the fewest columns that hold `mass` of softmax over c of (mean of r's queries) m_c / sqrt(D)
              + log n_c

    q: [G, N, D], k: [G, M, D], v: [G, M, E]; G: batch times heads. Not causal: tokens change their places, and results
    are put back in theirs.

Sorting lays what belongs together side by side, so that sparse blocks are dense in what counts (Sparse VideoGen2,
arXiv:2505.18875), and makes a cluster like its centroid, by which skipped ones count (SVG-EAR, arXiv:2603.08982).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.block_patterns import Pattern, pack, summarise
from edgekit.runtimes.kernels.lloyd import fit
from edgekit.runtimes.kernels.sparse_attention import attend


def attend_by_meaning(
    queries: Tensor, keys: Tensor, values: Tensor, clusters: int, mass: float = 0.9, block: int = 64
) -> Tensor:
    """[G, N, D], [G, M, D], [G, M, E] -> [G, N, E]. Raises UsageError for a mass outside of (0, 1]."""
    rows, columns, pattern = by_meaning(queries, keys, clusters, mass, block)
    found = attend(_take(queries, rows), _take(keys, columns), _take(values, columns), pattern, compensate=True)
    return torch.empty_like(found).scatter_(1, rows[:, :, None].expand_as(found), found)


def _take(tokens: Tensor, order: Tensor) -> Tensor:
    return tokens.gather(1, order[:, :, None].expand_as(tokens))


def by_meaning(
    queries: Tensor, keys: Tensor, clusters: int, mass: float = 0.9, block: int = 64
) -> tuple[Tensor, Tensor, Pattern]:
    """[G, N, D], [G, M, D] -> int64 orders of queries [G, N] and of keys [G, M], and the pattern among them sorted.

    Not causal. Raises UsageError for a mass outside of (0, 1].
    """
    if not 0 < mass <= 1:
        raise UsageError(f"the mass that is attended to is in (0, 1], got {mass}")
    rows, _ = _sort(queries, clusters)
    columns, starts = _sort(keys, clusters)
    groups, length, width = queries.shape
    edges = torch.arange(0, length + block, block, device=queries.device).clamp(max=length).int()
    sorted_queries = _take(queries, rows)
    sorted_keys = _take(keys, columns)
    mean_queries = summarise(sorted_queries, edges.repeat(groups, 1)).float()
    scores = mean_queries @ summarise(sorted_keys, starts).float().transpose(1, 2) / math.sqrt(width)
    share, order = (scores + starts.diff(dim=1).float().log()[:, None, :]).softmax(2).sort(2, descending=True)
    # A column is kept as long as those before it hold too little; of a whole mass rounding must not cost the last.
    before = share.cumsum(2) - share
    kept = (before < mass) | (mass == 1)
    chosen = torch.zeros_like(kept).scatter_(2, order, kept) & (starts.diff(dim=1) > 0)[:, None, :]
    return rows, columns, pack(chosen, starts, block)


def _sort(tokens: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """[G, M, D] -> int64 [G, M], tokens by cluster, and int32 [G, C + 1], where clusters start. Centres begin at tokens
    evenly apart, so that the same tokens always lie in the same clusters."""
    groups, count, _ = tokens.shape
    orders, starts = [], []
    for one in tokens.float():
        some = max(min(clusters, count), 1)
        centres = one[torch.arange(some, device=one.device) * count // some] if count else one
        _, nearest = fit(one, centres) if count else (centres, one.new_zeros(0, dtype=torch.int32))
        orders.append(torch.sort(nearest, stable=True).indices)
        starts.append(pad(torch.bincount(nearest.long(), minlength=some).cumsum(0), (1, 0)).int())
    if not groups:
        return tokens.new_zeros(0, count, dtype=torch.int64), tokens.new_zeros(0, 2, dtype=torch.int32)
    return torch.stack(orders), torch.stack(starts)

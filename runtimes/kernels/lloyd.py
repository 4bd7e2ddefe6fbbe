"""The rounds of k-means (Lloyd, IEEE Trans. Inf. Theory 28(2), 1982) in plain torch, or by kernels on a GPU.

    assign   a(i) = argmin_k |c_k|^2 - 2 x_i c_k + p_k   x: [N, D], c: [K, D], p: [K] or none, a: int32 [N];
                                                         ties go to the smaller k
    update   c_k  = mean of x_i with a(i) = k            an empty cluster keeps its centre

The penalty p makes clusters dear that are seldom used (Chou, Lookabaugh and Gray, IEEE Trans. ASSP 37(1), 1989).
float32 on CUDA goes to the kernels of kmeans.py, everything else to the references here: Triton is not imported before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekit.runtimes.kernels.base import call


def assign(points: Tensor, centres: Tensor, penalty: Tensor | None = None) -> Tensor:
    """[N, D], [K, D], [K] -> int32 [N]."""
    if not _on_kernel(points):
        return assign_reference(points, centres, penalty)
    from edgekit.runtimes.kernels.kmeans import ASSIGN

    found: Tensor = call(ASSIGN, points, centres, penalty)
    return found


def update(points: Tensor, nearest: Tensor, centres: Tensor) -> Tensor:
    """[N, D], int32 or int64 [N], [K, D] -> the new centres [K, D]."""
    if not _on_kernel(points):
        return update_reference(points, nearest, centres)
    from edgekit.runtimes.kernels.kmeans import UPDATE

    found: Tensor = call(UPDATE, points, nearest, centres)
    return found


def fit(points: Tensor, centres: Tensor, rounds: int = 20) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from `centres`, until nothing moves or for `rounds`. Returns centres [K, D] and int32 [N]."""
    nearest = assign(points, centres)
    for _ in range(rounds):
        centres = update(points, nearest, centres)
        after = assign(points, centres)
        if torch.equal(after, nearest):
            break
        nearest = after
    return centres, nearest


def assign_reference(points: Tensor, centres: Tensor, penalty: Tensor | None = None) -> Tensor:
    scores = centres.square().sum(1) - 2 * points @ centres.T
    return (scores if penalty is None else scores + penalty).argmin(1).to(torch.int32)


def update_reference(points: Tensor, nearest: Tensor, centres: Tensor) -> Tensor:
    counts = torch.bincount(nearest, minlength=len(centres))[:, None]
    sums = torch.zeros_like(centres).index_add_(0, nearest, points)
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)


def _on_kernel(points: Tensor) -> bool:
    return points.is_cuda and points.dtype == torch.float32

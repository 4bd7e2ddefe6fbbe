"""Rounding a weight matrix so that its product, not its entries, stays close: pure functions of tensors.

For inputs x (float network) and x' (what really arrives, already rounded), both centred, the output error of a row w'
is  E |w x - w' x'|^2.  With H = E x' x'^T and K = E x x'^T it is, up to a constant, (w' - t) H (w' - t)^T where
t = w K H^-1: the float row that best makes up for the errors of the layers before. What remains is to find the
nearest grid point in the metric H, by successive rounding with error feedback (Frantar et al. 2023, GPTQ, section 3)
and then coordinate descent. The objective is that of AdaRound (Nagel et al. 2020, equation 21, asymmetric form).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Columns are settled one by one within a block, what they mean for all others is then one matrix product.
BLOCK = 64


@dataclass
class Moments:
    """Running sums over positions of centred products; `G` groups, `K` inputs a group.

    exact, rounded: [G, K] sums; cross: [G, K, K] of x x'^T; gram: [G, K, K] of x' x'^T.
    """

    exact: Tensor
    rounded: Tensor
    cross: Tensor
    gram: Tensor
    count: int = 0

    @classmethod
    def zeros(cls, groups: int, inputs: int) -> Moments:
        square = (groups, inputs, inputs)
        return cls(torch.zeros(square[:2]), torch.zeros(square[:2]), torch.zeros(square), torch.zeros(square))

    def add(self, exact: Tensor, rounded: Tensor, means_only: bool = False) -> None:
        """`exact`, `rounded`: [G, K, positions]."""
        self.exact += exact.sum(2)
        self.rounded += rounded.sum(2)
        self.count += exact.shape[2]
        if means_only:
            return
        transposed = rounded.transpose(1, 2)
        self.cross.baddbmm_(exact, transposed)
        self.gram.baddbmm_(rounded, transposed)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        return self.exact / self.count, self.rounded / self.count

    def covariances(self) -> tuple[Tensor, Tensor]:
        """(cross, gram), centred, [G, K, K] each, in float64."""
        exact, rounded = (mean.double() for mean in self.means)
        cross = self.cross.double() / self.count - exact[:, :, None] * rounded[:, None, :]
        gram = self.gram.double() / self.count - rounded[:, :, None] * rounded[:, None, :]
        return cross, gram


def damped_metric(moments: Moments, damping: float) -> Tensor:
    """[G, K, K] float64: the covariance of x', plus `damping` times its mean variance on the diagonal.

    The damping keeps directions that the calibration data happen not to take from being given away for free.
    """
    _, gram = moments.covariances()
    level = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12) * damping
    return gram + torch.eye(gram.shape[1], dtype=gram.dtype) * level[:, None, None]


def compensated_rows(rows: Tensor, moments: Moments, ridge: float) -> Tensor:
    """t = w (K + r I) (H + r I)^-1 for `rows` [G, R, K], float64, r being `ridge` times the mean variance.

    A large ridge holds t to w: with few samples a small one fits their errors instead of the layers'.
    """
    cross, gram = moments.covariances()
    level = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12) * ridge
    held = torch.eye(gram.shape[1], dtype=gram.dtype) * level[:, None, None]
    solved: Tensor = torch.linalg.solve(gram + held, rows.double() @ (cross + held), left=False)
    return solved


def round_rows(targets: Tensor, metric: Tensor, scale: Tensor, limit: int, anchors: Tensor, passes: int = 3) -> Tensor:
    """Integer steps [G, R, K], float32, with small (q * scale - target) metric (q * scale - target)^T for each row,
    never larger than rounding to nearest leaves.

    scale: [G, R]. anchors: [G, R, K], the step (+-limit) that an entry has to keep, 0 where it is free.
    """
    fed = _feed_back(targets, metric, scale, limit, anchors)
    nearest = torch.clamp(torch.round(targets / scale[:, :, None]), -limit, limit).float()
    nearest = torch.where(anchors != 0, anchors, nearest)
    better = _loss(fed, targets, metric, scale) <= _loss(nearest, targets, metric, scale)
    steps = torch.where(better[:, :, None], fed, nearest)
    return _descend(steps, targets, metric, scale, limit, anchors, passes)


def _feed_back(targets: Tensor, metric: Tensor, scale: Tensor, limit: int, anchors: Tensor) -> Tensor:
    """One column after the other, largest variance first; each column's error moves the columns to come."""
    order = metric.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    upper = _error_flow(_permuted(metric, order)).float()
    index = order[:, None, :].expand_as(targets)
    work = targets.gather(2, index).float()
    held = anchors.gather(2, index)
    steps = torch.empty_like(work)
    for start in range(0, work.shape[2], BLOCK):
        end = min(start + BLOCK, work.shape[2])
        errors = torch.empty_like(work[:, :, start:end])
        for column in range(start, end):
            wanted = work[:, :, column]
            step = torch.clamp(torch.round(wanted / scale), -limit, limit)
            step = torch.where(held[:, :, column] != 0, held[:, :, column], step)
            steps[:, :, column] = step
            error = (wanted - step * scale) / upper[:, column, column, None]
            errors[:, :, column - start] = error
            work[:, :, column + 1 : end] -= error[:, :, None] * upper[:, column, None, column + 1 : end]
        work[:, :, end:] -= errors @ upper[:, start:end, end:]
    return torch.empty_like(steps).scatter_(2, index, steps)


def _error_flow(metric: Tensor) -> Tensor:
    """U, upper triangular, with inv(metric) = U^T U: row j holds how column j's error moves the later ones.

    metric = R R^T with R upper, by a Cholesky of the reversed matrix, and U = inv(R): nothing is inverted but a
    triangle, and a metric that rounding has left short of positive definite gets just the ridge that it lacks.
    """
    ridge = torch.zeros(len(metric), dtype=metric.dtype)
    typical = metric.diagonal(dim1=1, dim2=2).mean(1)
    identity = torch.eye(metric.shape[1], dtype=metric.dtype).expand_as(metric)
    while True:
        lower, broken = torch.linalg.cholesky_ex((metric + ridge[:, None, None] * identity).flip(1, 2))
        if not broken.any():
            upper: Tensor = torch.linalg.solve_triangular(lower.flip(1, 2), identity, upper=True)
            return upper
        wider = torch.where(ridge > 0, 10 * ridge, 1e-10 * typical)
        ridge = torch.where(broken > 0, wider.clamp(min=torch.finfo(metric.dtype).tiny), ridge)


def _descend(
    steps: Tensor, targets: Tensor, metric: Tensor, scale: Tensor, limit: int, anchors: Tensor, passes: int
) -> Tensor:
    """Each entry in turn to its best step with the others fixed, until nothing moves or `passes` are over."""
    metric = metric.float()
    slope = (steps * scale[:, :, None] - targets.float()) @ metric
    for _ in range(passes):
        moved = False
        for start in range(0, steps.shape[2], BLOCK):
            end = min(start + BLOCK, steps.shape[2])
            before = steps[:, :, start:end].clone()
            local = slope[:, :, start:end].clone()
            for column in range(start, end):
                old = steps[:, :, column]
                curvature = metric[:, column, column, None] * scale
                best = torch.clamp(torch.round(old - local[:, :, column - start] / curvature), -limit, limit)
                best = torch.where(anchors[:, :, column] != 0, anchors[:, :, column], best)
                change = (best - old) * scale
                local += change[:, :, None] * metric[:, column, None, start:end]
                steps[:, :, column] = best
            changes = (steps[:, :, start:end] - before) * scale[:, :, None]
            if changes.any():
                moved = True
                slope += changes @ metric[:, start:end]
        if not moved:
            break
    return steps


def _loss(steps: Tensor, targets: Tensor, metric: Tensor, scale: Tensor) -> Tensor:
    """[G, R]: the quadratic form of each row's error."""
    error = (steps * scale[:, :, None] - targets).float()
    return ((error @ metric.float()) * error).sum(2)


def _permuted(metric: Tensor, order: Tensor) -> Tensor:
    size = metric.shape[1]
    rows = metric.gather(1, order[:, :, None].expand(-1, -1, size))
    return rows.gather(2, order[:, None, :].expand(-1, size, -1))

"""Losses from the Cauchy-Schwarz divergence, beside the mean squared error: tensors in, a scalar tensor out.

The information bottleneck for regression of Yu et al. (ICLR 2024, arXiv:2404.17951) asks for a small
D_CS(p(y|x); q(y^|x)) and a small I_CS(x; t), both estimated with Gaussian kernels, without assuming a Gaussian error
as the mean squared error does and without a variational bound. D_CS(p; q) = -log((int p q)^2 / (int p^2 int q^2)).
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-12


def gram(x: Tensor, y: Tensor | None = None, *, width: float | Tensor | None = None) -> Tensor:
    """exp(-|x_i - y_j|^2 / (2 width^2)) of `x`: [N, ...] and `y`: [M, ...] (`x` itself where None), [N, M].

    Without a width it is that of `kernel_width(x)`.
    """
    other = x if y is None else y
    scale = kernel_width(x) if width is None else torch.as_tensor(width, dtype=x.dtype, device=x.device)
    return torch.exp(-squared_distances(x, other) / (2 * scale.square()))


def kernel_width(x: Tensor) -> Tensor:
    """The median distance between rows of `x`: [N, ...] that differ, over the square root of two: a scalar without
    gradient, above zero. The width follows the scale of a representation while it is trained."""
    rows = x.detach().flatten(1)
    distances = squared_distances(rows, rows)
    apart = distances[torch.triu(torch.ones_like(distances, dtype=torch.bool), diagonal=1) & (distances > FLOOR)]
    return (apart.median() / 2).sqrt() if apart.numel() else torch.ones((), dtype=x.dtype, device=x.device)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """[N, ...] and [M, ...] -> [N, M], from differences: the expanded square loses its digits where rows are near."""
    distances: Tensor = torch.cdist(x.flatten(1), y.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square()


def cauchy_schwarz_divergence(x: Tensor, y: Tensor, *, width: float | Tensor | None = None) -> Tensor:
    """D_CS of two densities given by samples `x`: [N, ...] and `y`: [M, ...]; zero where they are the same.

    One kernel serves both (by default the width of all the samples), so the estimate is never negative.
    """
    scale = kernel_width(torch.cat([x, y])) if width is None else width
    inside_x, inside_y = gram(x, width=scale).mean(), gram(y, width=scale).mean()
    return _log(inside_x) + _log(inside_y) - 2 * _log(gram(x, y, width=scale).mean())


def conditional_divergence(
    x: Tensor,
    y: Tensor,
    predicted: Tensor,
    *,
    x_width: float | Tensor | None = None,
    y_width: float | Tensor | None = None,
) -> Tensor:
    """The prediction term D_CS(p(y|x); q(y^|x)), from N triples (their proposition 1).

    `x`: [N, ...], `y` and `predicted`: [N, ...] of one shape. The sample's own term stays in each sum, as published.
    `y_width` is by default that of `y`: it does not move with the prediction.
    """
    near = gram(x, width=x_width)
    scale = kernel_width(y) if y_width is None else y_width
    # 1 / p(x)^2 at each sample, up to a constant that cancels between the three terms.
    weight = near.sum(1).square().reciprocal()

    def overlap(kernel: Tensor) -> Tensor:
        return _log((weight * (near * kernel).sum(1)).sum())

    # K pairs sample j with sample i and the cross kernel is not symmetric: row j is the prediction's.
    truth, guess, across = gram(y, width=scale), gram(predicted, width=scale), gram(predicted, y, width=scale)
    return overlap(truth) + overlap(guess) - 2 * overlap(across)


def cauchy_schwarz_information(
    x: Tensor, t: Tensor, *, x_width: float | Tensor | None = None, t_width: float | Tensor | None = None
) -> Tensor:
    """The compression term I_CS(x; t) = D_CS(p(x, t); p(x) p(t)), from N pairs (their proposition 2), in nats.

    Zero where `t` is constant or the pairs are independent, never negative: the estimate is the divergence of the
    pairs from all N^2 combinations under one product kernel.
    """
    near_x, near_t = gram(x, width=x_width), gram(t, width=t_width)
    joint = (near_x * near_t).mean()
    apart = near_x.mean() * near_t.mean()
    across = (near_x.mean(1) * near_t.mean(1)).mean()
    return _log(joint) + _log(apart) - 2 * _log(across)


def bottleneck_loss(x: Tensor, t: Tensor, y: Tensor, predicted: Tensor, *, beta: float) -> Tensor:
    """What a regression bottleneck minimises: the prediction term plus `beta` times the compression term."""
    return conditional_divergence(x, y, predicted) + beta * cauchy_schwarz_information(x, t)


def _log(value: Tensor) -> Tensor:
    return value.clamp_min(torch.finfo(value.dtype).tiny).log()

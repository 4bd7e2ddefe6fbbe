"""Principal axes of features in the metric of the tail's sensitivity: pure tensors in, tensors out.

An error e in the features moves the tail's outputs by about e^T G e, where G = E[g g^T] over gradients g of random
projections of the outputs. In the coordinates z = S x, S = G^(1/2), every direction matters alike, so the axes that
decorrelate z (Karhunen-Loeve) and one uniform quantizer step for all of them are the optimal transform code at high
rates (Goyal, IEEE Signal Processing Magazine 18(5), 2001, section "transform coding"). Both moments are taken as
Kronecker products over the modes of a feature (channels, rows, columns), as the discrete cosine transform of images
does: three small matrices instead of one of C H W squared elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axes:
    """Of one mode with n coordinates: `encoder` [n, n] takes deviations from the mean to components, `decoder` [n, n]
    takes them back (its inverse), `variances` [n] of the components, descending. float32.
    """

    encoder: Tensor
    decoder: Tensor
    variances: Tensor

    def keep(self, count: int) -> Axes:
        """The `count` most important: encoder [count, n], decoder [n, count]."""
        return Axes(self.encoder[:count], self.decoder[:, :count], self.variances[:count])


@dataclass(frozen=True)
class Projection:
    """u = (z - mean) @ project, z = u @ restore + mean; `project`: [D, A], `restore`: [A, D], `mean`: [D]."""

    mean: Tensor
    project: Tensor
    restore: Tensor


def second_moment(values: Tensor, mode: int) -> Tensor:
    """E[v v^T] along dimension `mode` of [N, ...], over samples and all other dimensions: float64 [n, n]."""
    rows = values.movedim(mode, -1).reshape(-1, values.shape[mode]).double()
    return rows.T @ rows / len(rows)


def principal_axes(covariance: Tensor, sensitivity: Tensor | None = None, regularization: float = 0.02) -> Axes:
    """Axes of `covariance` [n, n] in the metric `sensitivity` [n, n] (None: the identity).

    The sensitivity is scaled to mean 1 and `regularization` is added to its diagonal: directions that no calibration
    gradient points to are not worth nothing.
    """
    count = len(covariance)
    identity = torch.eye(count, dtype=torch.float64)
    metric = identity if sensitivity is None else sensitivity.double()
    scale = metric.diagonal().mean()
    metric = metric / scale if scale > 0 else identity
    encoder, decoder, variances = _aligned(covariance.double(), metric + regularization * identity)
    return Axes(encoder.float(), decoder.float(), variances.float())


def principal_projection(points: Tensor, count: int, metric: Tensor | None = None) -> Projection:
    """Onto the `count` leading principal axes of `points` [N, D] in the metric [D, D] (None: the identity) as it is:
    squared distances after it are those of the points in the metric, and components are uncorrelated."""
    mean = points.mean(0)
    centred = (points - mean).double()
    identity = torch.eye(points.shape[1], dtype=torch.float64)
    encoder, decoder, _ = _aligned(centred.T @ centred, identity if metric is None else metric.double())
    return Projection(mean, encoder[:count].T.to(points.dtype), decoder[:, :count].T.to(points.dtype))


def separable_axes(
    features: Tensor, gradients: Tensor | None, modes: Sequence[int], regularization: float = 0.02
) -> list[Axes]:
    """One Axes per mode of `features` [N, ...] (deviations from the mean) and `gradients` of the same shape."""
    return [
        principal_axes(
            second_moment(features, mode),
            None if gradients is None else second_moment(gradients, mode),
            regularization,
        )
        for mode in modes
    ]


def output_gradients(
    tail: Callable[[Tensor], Sequence[Tensor]], features: Tensor, *, seed: int, batch: int = 32
) -> Tensor:
    """Gradients [N, ...] of one random projection of the tail's outputs for each sample of `features` [N, ...].

    E[g g^T] = E[J^T J] for projections with unit covariance: the sum over outputs of their sensitivities, which is
    the Fisher information of outputs with Gaussian noise, and needs no labels and no classes.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for part in torch.split(features, batch):
        leaf = part.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            outputs = [value for value in tail(leaf) if value.is_floating_point()]
            projected = sum((value * torch.randn(value.shape, generator=generator)).sum() for value in outputs)
            assert isinstance(projected, Tensor)
            (gradient,) = torch.autograd.grad(projected, leaf)
        found.append(gradient)
    return torch.cat(found)


def apply_modes(values: Tensor, matrices: Sequence[Tensor], modes: Sequence[int]) -> Tensor:
    """Each matrix [m, n] along its dimension of [N, ...]: the reference for what heads and tails compute."""
    for matrix, mode in zip(matrices, modes, strict=True):
        values = torch.tensordot(values, matrix, ([mode], [1])).movedim(-1, mode)
    return values


def _aligned(covariance: Tensor, metric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With metric M = S S, S symmetric, and S Sigma S = U diag(variances) U^T: encoder = U^T S, decoder = S^+ U (the
    pseudo-inverse: what M does not see comes back as 0) and the variances, descending. float64 [n, n], [n, n], [n].
    """
    weights, basis = torch.linalg.eigh((metric + metric.T) / 2)
    floor = weights.max().clamp_min(0) * len(weights) * torch.finfo(torch.float64).eps
    roots = torch.where(weights > floor, weights, 0.0).sqrt()
    root = basis * roots @ basis.T
    inverse = basis * torch.where(roots > 0, 1 / roots, 0.0) @ basis.T
    variances, turn = torch.linalg.eigh(root @ covariance @ root)
    turn = _settle_signs(turn.flip(1))
    return turn.T @ root, inverse @ turn, variances.flip(0).clamp_min(0)


def _settle_signs(basis: Tensor) -> Tensor:
    """Columns turned so that the largest element is positive: eigenvectors have no sign, artifacts need one."""
    largest = basis.abs().argmax(0)
    return torch.asarray(basis * basis.gather(0, largest[None]).sign())

"""A differentiable stand-in for the entropy coder, for training with the rate in the loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LaplaceRate(nn.Module):
    """Each component at each position is Laplacian around zero, with a scale that is learned.

    Rounding to multiples of a step is replaced by uniform noise of the step's width, so that the probability of a bin
    is a density which has gradients (Balle et al., arXiv:1611.01704, section 3). One density serves every step.
    """

    def __init__(self, components: Tensor) -> None:
        """`components` [N, ...]: the scale begins at their mean magnitude."""
        super().__init__()
        magnitude = components.abs().mean(0)
        floor = magnitude.max().clamp_min(1e-12) * 1e-4
        self.log_scale = nn.Parameter(magnitude.clamp_min(floor).log())

    def forward(self, noisy: Tensor, step: Tensor) -> Tensor:
        """Bits of each sample [B], for components plus noise [B, ...] and steps [B, 1, ...]."""
        return bin_bits(noisy, step, self.log_scale.exp()).flatten(1).sum(1)


def bin_bits(values: Tensor, step: Tensor, scale: Tensor) -> Tensor:
    """-log2 of a Laplace distribution's mass within `step` / 2 of `values`, elementwise; stable in both tails."""
    distance, half = values.abs(), step / 2
    outside = (half - distance) / scale + torch.log1p(-torch.exp(-step / scale)) - math.log(2)
    near = torch.minimum(distance, half)
    inside = torch.log1p(-0.5 * (torch.exp((near - half) / scale) + torch.exp(-(near + half) / scale)))
    return torch.where(distance > half, outside, inside) * (-1 / math.log(2))


def quantize(components: Tensor, step: Tensor, noise: Tensor | None = None) -> Tensor:
    """Components rounded to multiples of the step, with the gradient of the identity; `noise` in [-1/2, 1/2] steps is
    added in place of rounding where given.
    """
    if noise is not None:
        return components + noise * step
    rounded = torch.round(components / step) * step
    return components + (rounded - components).detach()

"""Weight grids: symmetric, the largest weight of each channel on the outermost step, and weights put onto them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from edgekit.quantization import Scheme, WeightGrid

SMALLEST_SCALE = 2.0**-40
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)


def weight_grid(weight: Tensor, axis: int | None, scheme: Scheme) -> WeightGrid:
    """Grid of `weight` in the scheme's bits: one scale per channel along `axis` (the scheme's choice).

    The largest |weight| of a channel lies on the outermost step: a converter that finds scales for itself from on-grid
    weights finds these.
    """
    limit, bits = scheme.weight_limit, scheme.weight_bits
    if axis is None or not scheme.per_channel_weights:
        scale = _scale(weight.abs().max(), limit)
        return WeightGrid(scale, torch.zeros((), dtype=torch.int64), None, bits)
    others = [dim for dim in range(weight.dim()) if dim != axis]
    largest = weight.detach().abs().amax(others) if others else weight.detach().abs()
    scale = _scale(largest, limit)
    return WeightGrid(scale, torch.zeros(len(scale), dtype=torch.int64), axis, bits)


def clipped_grid(weight: Tensor, axis: int | None, scheme: Scheme, shares: tuple[float, ...] = SHARES) -> WeightGrid:
    """Like `weight_grid`, each channel's scale shrunk by the share that leaves the least squared error."""
    full = weight_grid(weight, axis, scheme)
    others = [dim for dim in range(weight.dim()) if dim != full.axis]
    best, scale = torch.full_like(full.scale, float("inf")), full.scale
    for share in shares:
        tried = replace(full, scale=full.scale * share)
        error = (on_grid(weight, tried) - weight.detach()).square().sum(others)
        scale = torch.where(error < best, tried.scale, scale)
        best = torch.minimum(error, best)
    return replace(full, scale=scale)


def group_grid(weight: Tensor, bits: int, group_size: int) -> WeightGrid:
    """Symmetric grid of a [out, in] weight, one scale for `group_size` neighbours along the inputs."""
    out, width = weight.shape
    largest = weight.detach().reshape(out, width // group_size, group_size).abs().amax(2)
    scale = _scale(largest, 2 ** (bits - 1) - 1)
    return WeightGrid(scale, torch.zeros_like(scale, dtype=torch.int64), 1, bits, group_size)


def expand_grid(weight: Tensor, grid: WeightGrid) -> tuple[Tensor, Tensor]:
    """Scale and zero point in a shape that broadcasts against `weight`."""
    if grid.axis is None:
        return grid.scale, grid.zero_point
    if grid.group_size is not None:
        return (
            grid.scale.repeat_interleave(grid.group_size, dim=1),
            grid.zero_point.repeat_interleave(grid.group_size, dim=1),
        )
    shape = [-1 if dim == grid.axis else 1 for dim in range(weight.dim())]
    return grid.scale.reshape(shape), grid.zero_point.reshape(shape)


def quantize_weight(weight: Tensor, grid: WeightGrid) -> Tensor:
    """int8 of `weight`'s shape: round(weight / scale) + zero_point, symmetric in the grid's bits."""
    limit = 2 ** (grid.bits - 1) - 1
    scale, zero = expand_grid(weight, grid)
    return torch.clamp(torch.round(weight.detach() / scale) + zero, -limit, limit).to(torch.int8)


def on_grid(weight: Tensor, grid: WeightGrid) -> Tensor:
    """float32: `weight` with each value on its nearest step."""
    scale, zero = expand_grid(weight, grid)
    return (quantize_weight(weight, grid).float() - zero) * scale


def _scale(largest: Tensor, limit: int) -> Tensor:
    """A channel of zeros gets step 1: its weights stay zero on any grid."""
    scale = largest.float() / limit
    return torch.where(scale < SMALLEST_SCALE, torch.ones_like(scale), scale)

"""A layer as a product of matrices: its weight as rows [groups, outputs, inputs], its input as columns.

Linear, addmm, matmul, and convolutions in one or two dimensions with any stride, padding, dilation and groups.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from edgekit.quantizers.anatomy import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, WeightedLayer, argument

POSITIONS = 1024


def rows_of(layer: WeightedLayer, weight: Tensor) -> Tensor | None:
    """[groups, outputs, inputs] of `weight`; None for a layer that is no plain product (transposed convolutions)."""
    if layer.node.target in TRANSPOSED_CONVOLUTIONS:
        return None
    if layer.node.target in CONVOLUTIONS:
        return weight.detach().reshape(layer.groups, weight.shape[0] // layer.groups, -1)
    return (weight.detach() if layer.axis == 0 else weight.detach().T)[None]


def rows_to_weight(layer: WeightedLayer, rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `rows_of`, in the shape of `like`."""
    if layer.node.target in CONVOLUTIONS or layer.axis == 0:
        return rows.reshape(like.shape).contiguous()
    return rows[0].T.contiguous()


def patches(layer: WeightedLayer, weight: Tensor, value: Tensor) -> Tensor:
    """[groups, inputs, positions] of the input `value` (batch first); at most POSITIONS, evenly spread."""
    if layer.node.target not in CONVOLUTIONS:
        columns = value.reshape(-1, value.shape[-1]).T[None]
        return _thinned(columns)
    if value.dim() == weight.dim() - 1:
        value = value[None]
    dims = weight.dim() - 2
    stride = _each(argument(layer.node, 3, "stride", 1), dims)
    padding = argument(layer.node, 4, "padding", 0)
    dilation = _each(argument(layer.node, 5, "dilation", 1), dims)
    kernel = list(weight.shape[2:])
    if dims == 1:
        value, kernel, stride, dilation = value[:, :, None], [1, *kernel], [1, *stride], [1, *dilation]
    margins = _margins(padding, kernel, dilation, dims)
    if any(margins):
        value = functional.pad(value, margins)
    groups, inputs = layer.groups, weight[0].numel()
    if all(size == 1 for size in kernel):
        columns = value[:, :, :: stride[0], :: stride[1]].flatten(2)
    else:
        columns = _unfolded(value, kernel, stride, dilation)
    batch, _, positions = columns.shape
    columns = columns.reshape(batch, groups, inputs, positions).permute(1, 2, 0, 3)
    return _thinned(columns.reshape(groups, inputs, batch * positions))


def _unfolded(value: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> Tensor:
    """[batch, channels * kernel, positions], every so many output rows and columns only where there are too many."""
    high, wide = (
        (size - step * (width - 1) - 1) // move + 1
        for size, width, move, step in zip(value.shape[2:], kernel, stride, dilation, strict=True)
    )
    thin = max(1, round((high * wide / POSITIONS) ** 0.5)) | 1 if high * wide > POSITIONS else 1
    high_move, wide_move = (move * thin for move in stride)
    size, step = (kernel[0], kernel[1]), (dilation[0], dilation[1])
    return functional.unfold(value, size, step, 0, (high_move, wide_move))


def _thinned(columns: Tensor) -> Tensor:
    stride = max(1, columns.shape[2] // POSITIONS)
    return columns[:, :, ::stride]


def _margins(padding: object, kernel: list[int], dilation: list[int], dims: int) -> list[int]:
    """As functional.pad wants them: last dimension first."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        sides = []
        for size, step in zip(reversed(kernel), reversed(dilation), strict=True):
            total = step * (size - 1)
            sides += [total // 2, total - total // 2]
        return sides
    amounts = _each(padding, dims)
    amounts = [0] * (2 - dims) + amounts
    return [side for amount in reversed(amounts) for side in (amount, amount)]


def _each(value: object, dims: int) -> list[int]:
    if isinstance(value, int):
        return [value] * dims
    sizes = [int(size) for size in value]  # type: ignore[attr-defined]
    return sizes * dims if len(sizes) == 1 else sizes

"""The modules on either side of the wire: linear along each mode of the feature, with an optional learned residual.

Shapes: images [B, C, H, W] have modes channels, rows, columns; tokens [B, N, C] have tokens and channels; vectors
[B, C] have channels. Components stand where channels stood, so that they are [B, K, H, W], [B, N, K] or [B, K].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.passes.bottleneck.axes import Axes


def channel_axis(rank: int) -> int:
    """Of images 1, of tokens 2, of vectors 1."""
    return {2: 1, 3: 2, 4: 1}[rank]


class AlongModes(nn.Module):
    """y = (M_c x M_p ...) x + bias; matrices [m, n] by mode, `bias` as [1, ...] or None.

    The channels of an image go through a 1 x 1 convolution, whose weight is kept as [m, n, 1, 1].
    """

    def __init__(self, rank: int, matrices: dict[int, Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.rank = rank
        kept = {mode: m[:, :, None, None] if (rank, mode) == (4, 1) else m for mode, m in matrices.items()}
        self.matrices = nn.ParameterDict({str(mode): nn.Parameter(m.clone()) for mode, m in kept.items()})
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def forward(self, values: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K, H, W]; [B, N, C] -> [B, N, K]; [B, C] -> [B, K]."""
        for key, matrix in self.matrices.items():
            mode = int(key)
            if self.rank == 4 and mode == 1:
                values = functional.conv2d(values, matrix)
            elif mode == self.rank - 1:
                values = functional.linear(values, matrix)
            else:
                values = torch.matmul(matrix, values)
        return values if self.bias is None else values + self.bias


class Residual(nn.Module):
    """x + project(depthwise(expand(x))), rectified in the wide layers, linear in the narrow one (MobileNetV2's block,
    Sandler et al., arXiv:1801.04381, section 3.3). The projection begins at zero: nothing is changed before training.

    Tokens and vectors have no neighbours: their block is expand and project alone.
    """

    def __init__(self, rank: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.rank = rank
        if rank == 4:
            self.expand: nn.Module = nn.Conv2d(channels, hidden, 1)
            self.depthwise: nn.Module = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
            self.project: nn.Conv2d | nn.Linear = nn.Conv2d(hidden, channels, 1)
        else:
            self.expand, self.depthwise = nn.Linear(channels, hidden), nn.Identity()
            self.project = nn.Linear(hidden, channels)
        nn.init.zeros_(self.project.weight)
        if self.project.bias is not None:
            nn.init.zeros_(self.project.bias)

    def forward(self, values: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        wide = functional.relu(self.expand(values))
        if self.rank == 4:
            wide = functional.relu(self.depthwise(wide))
        changed: Tensor = values + self.project(wide)
        return changed


class Encoder(nn.Module):
    """Crossing values (joined along the channels) -> components."""

    def __init__(self, rank: int, linear: AlongModes, residual: Residual | None = None) -> None:
        super().__init__()
        self.axis, self.residual, self.linear = channel_axis(rank), residual, linear

    def forward(self, *values: Tensor) -> Tensor:
        joined = values[0] if len(values) == 1 else torch.cat(values, self.axis)
        if self.residual is not None:
            joined = self.residual(joined)
        components: Tensor = self.linear(joined)
        return components


class Decoder(nn.Module):
    """Components -> the crossing values, of `channels` each."""

    def __init__(
        self, rank: int, linear: AlongModes, channels: Sequence[int], residual: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.axis, self.channels = channel_axis(rank), list(channels)
        self.linear, self.residual = linear, residual

    def forward(self, components: Tensor) -> tuple[Tensor, ...]:
        joined = self.linear(components)
        if self.residual is not None:
            joined = self.residual(joined)
        return (joined,) if len(self.channels) == 1 else tuple(joined.split(self.channels, self.axis))


def coders(axes: dict[int, Axes], mean: Tensor, channels: Sequence[int], hidden: int = 0) -> tuple[Encoder, Decoder]:
    """Encoder and decoder of `axes` by mode around `mean` [...] (without the batch); exact inverses where nothing was
    dropped. `hidden`: width of the learned residual on either side, 0 for none.
    """
    rank = mean.dim() + 1
    forward = {mode: axis.encoder for mode, axis in axes.items()}
    shift = AlongModes(rank, forward, None)(mean[None]).detach()
    total = sum(channels)
    residuals = [Residual(rank, total, hidden) if hidden else None for _ in range(2)]
    encoder = Encoder(rank, AlongModes(rank, forward, -shift), residuals[0])
    backward = {mode: axis.decoder for mode, axis in reversed(axes.items())}
    return encoder, Decoder(rank, AlongModes(rank, backward, mean[None]), channels, residuals[1])

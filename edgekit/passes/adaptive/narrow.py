"""An encoder block at a share of its width: the first heads and the first feed-forward units of the same weights.

Slimmable networks (Yu et al., arXiv:1812.08928, section 3): one set of weights serves every width, the narrow one is a
corner of the wide one's matrices. The width of the tokens stays, so embeddings, norms and classifier are shared whole.
"""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import UsageError
from edgekit.passes.transformer.block import EncoderBlock, FeedForward, SelfAttention


class Corner(nn.Module):
    """The first `rows` outputs and `columns` inputs of a linear layer, its weights shared: what trains this trains
    `whole`."""

    def __init__(self, whole: nn.Linear, rows: int, columns: int) -> None:
        super().__init__()
        self.whole, self.out_features, self.in_features = whole, rows, columns

    @property
    def weight(self) -> Tensor:
        return self.whole.weight[: self.out_features, : self.in_features]

    @property
    def bias(self) -> Tensor | None:
        return None if self.whole.bias is None else self.whole.bias[: self.out_features]

    def forward(self, value: Tensor) -> Tensor:
        return functional.linear(value, self.weight, self.bias)


def share_of(count: int, width: float) -> int:
    """How many of `count` heads or units a `width` in (0, 1] keeps, at least one; halves are rounded up."""
    return min(count, max(1, math.floor(count * width + 0.5)))


def check_width(width: float) -> None:
    """Raises UsageError."""
    if not 0 < width <= 1:
        raise UsageError(f"a width is {width:g}, allowed above 0 to 1", hint="1.0,0.75,0.5 are the usual ones")


def narrow(block: EncoderBlock, width: float) -> EncoderBlock:
    """The block at `width`, sharing the weights of `block`. Raises UsageError for a width out of range."""
    check_width(width)
    own, ffn = block.attention, block.feed_forward
    heads = share_of(own.heads, width)
    keys, values = heads * own.head_width, heads * (own.value.out_features // own.heads)
    units = share_of(ffn.expand.out_features, width)
    attention = SelfAttention(
        _corner(own.query, rows=keys),
        _corner(own.key, rows=keys),
        _corner(own.value, rows=values),
        _corner(own.output, columns=values),
        heads,
    )
    feed_forward = FeedForward(_corner(ffn.expand, rows=units), ffn.activation, _corner(ffn.contract, columns=units))
    return EncoderBlock(
        attention,
        feed_forward,
        block.norm1,
        block.norm2,
        is_prenorm=block.is_prenorm,
        scale1=block.scale1,
        scale2=block.scale2,
    )


def _corner(layer: nn.Linear, rows: int | None = None, columns: int | None = None) -> nn.Linear:
    """Typed as the linear layer that it stands for."""
    corner = Corner(layer, rows or layer.out_features, columns or layer.in_features)
    return cast(nn.Linear, corner)

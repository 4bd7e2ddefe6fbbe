"""Cutting an encoder's blocks: rows and columns of the linear layers that belong to the parts that go."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.passes.transformer.block import EncoderBlock, FeedForward, SelfAttention


@dataclass(frozen=True)
class Kept:
    """What stays of one block, as sorted numbers of heads and of hidden units; both empty: the block goes."""

    heads: tuple[int, ...]
    units: tuple[int, ...]

    @property
    def whole_block_goes(self) -> bool:
        return not self.heads and not self.units


def everything(blocks: Sequence[EncoderBlock]) -> tuple[Kept, ...]:
    return tuple(
        Kept(tuple(range(b.attention.heads)), tuple(range(b.feed_forward.expand.out_features))) for b in blocks
    )


def cut_blocks(blocks: Sequence[EncoderBlock], kept: Sequence[Kept]) -> tuple[EncoderBlock, ...]:
    """New blocks; normalizations and scales are copies. A block that goes is left out: its residual passes."""
    return tuple(cut_block(block, part) for block, part in zip(blocks, kept, strict=True) if not part.whole_block_goes)


def cut_block(block: EncoderBlock, kept: Kept) -> EncoderBlock:
    own, feed = block.attention, block.feed_forward
    query, value = (rows_of(kept.heads, layer.out_features // own.heads) for layer in (own.query, own.value))
    units = torch.tensor(kept.units, dtype=torch.long)
    return EncoderBlock(
        SelfAttention(
            cut_linear(own.query, rows=query),
            cut_linear(own.key, rows=query),
            cut_linear(own.value, rows=value),
            cut_linear(own.output, columns=value),
            len(kept.heads),
        ),
        FeedForward(
            cut_linear(feed.expand, rows=units),
            copy.deepcopy(feed.activation),
            cut_linear(feed.contract, columns=units),
        ),
        copy.deepcopy(block.norm1),
        copy.deepcopy(block.norm2),
        is_prenorm=block.is_prenorm,
        scale1=copy.deepcopy(block.scale1),
        scale2=copy.deepcopy(block.scale2),
    )


def rows_of(heads: Sequence[int], width: int) -> Tensor:
    """The rows [len(heads) x width] of a projection that hold `heads` of `width` each."""
    first = torch.tensor(heads, dtype=torch.long).unsqueeze(1) * width
    return (first + torch.arange(width)).flatten()


def cut_linear(layer: nn.Linear, *, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """A layer of its own with those outputs (rows) and inputs (columns) of `layer`."""
    weight, bias = layer.weight.detach(), layer.bias.detach() if layer.bias is not None else None
    if rows is not None:
        weight, bias = weight[rows], bias[rows] if bias is not None else None
    if columns is not None:
        weight = weight[:, columns]
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    made.weight = nn.Parameter(weight.clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.clone())
    return made

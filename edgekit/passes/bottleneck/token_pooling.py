"""Pooling of a token sequence into k vectors: learned queries that attend to the tokens, beside a fixed mixing.

Queries that are parameters, and a sequence as keys and values, are the Perceiver's input attention (Jaegle et al.,
arXiv:2103.03206, section 3.1); since they do not depend on the input, query and key matrices are one, as in
TokenLearner's attention maps (Ryoo et al., arXiv:2106.11297, section 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekit.passes.transformer.block import EncoderBlock

# Queries that all begin alike would attend alike: their scores begin at this deviation.
SPREAD = 0.5


class LearnedQueries(nn.Module):
    """`count` queries over a sequence of width `width`, in `heads` heads. The output begins at zero: what stands beside
    it is not changed before training."""

    def __init__(self, count: int, width: int, heads: int) -> None:
        super().__init__()
        self.count, self.heads = count, heads
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, count * heads, bias=False)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        nn.init.normal_(self.score.weight, std=SPREAD / width**0.5)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T, C] -> [N, count, C]."""
        batch, length, width = tokens.shape
        normed = self.norm(tokens)
        scores = self.score(normed).reshape(batch, length, self.heads, self.count).permute(0, 2, 3, 1)
        values = self.value(normed).reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)
        gathered = (torch.softmax(scores, -1) @ values).transpose(1, 2).reshape(batch, self.count, width)
        pooled: Tensor = self.output(gathered)
        return pooled


class TokenPool(nn.Module):
    """[N, T, C] -> [N, k, C]: `mixing` [k, T] of the positions, and what learned queries add to it."""

    def __init__(self, mixing: Tensor, width: int, heads: int) -> None:
        super().__init__()
        self.mixing = nn.Parameter(mixing.clone())
        self.queries = LearnedQueries(len(mixing), width, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = torch.matmul(self.mixing, tokens) + self.queries(tokens)
        return mixed


class PooledStack(nn.Module):
    """The blocks of an encoder, the tokens pooled behind the first `block` of them; `protected` leading tokens stay.

    What is left of the sequence weighs as much as the sequence did: each vector's key begins as if it stood for its
    share of the tokens (Bolya et al., arXiv:2210.09461, section 3.3).
    """

    def __init__(self, blocks: Sequence[EncoderBlock], block: int, pool: TokenPool, protected: int) -> None:
        super().__init__()
        self.below, self.blocks = nn.ModuleList(blocks[:block]), nn.ModuleList(blocks[block:])
        self.pool, self.protected = pool, protected
        count, length = pool.mixing.shape
        share = torch.full((count,), (length - protected) / count).log()
        self.weight = nn.Parameter(torch.cat([torch.zeros(protected), share])[None, None, None])

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """[N, T, C] -> [N, protected + k, C]."""
        for block in self.below:
            tokens = block(tokens, bias)
        tokens = torch.cat([tokens[:, : self.protected], self.pool(tokens)], 1)
        for block in self.blocks:
            tokens = block(tokens, self.weight)
        return tokens

    def trained(self) -> nn.Module:
        """What pooling trains: all but the blocks below."""
        part = nn.Module()
        part.pool, part.blocks = self.pool, self.blocks
        part.register_parameter("weight", self.weight)
        return part


def heads_for(width: int, wanted: int = 4) -> int:
    """The most heads up to `wanted` that part `width` evenly."""
    return max(count for count in range(1, wanted + 1) if width % count == 0)


def segment_means(count: int, length: int) -> Tensor:
    """float32 [count, length]: row k averages the k-th of `count` runs of neighbours, as even as they can be."""
    owner = torch.arange(length) * count // length
    member = (owner[None] == torch.arange(count)[:, None]).float()
    return member / member.sum(1, keepdim=True)

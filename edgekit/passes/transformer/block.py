"""One encoder block for every family: pre-norm or post-norm, with layer scale or without.

Its parts are the user's own layers, so the answers stay the same up to the order of additions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Attended:
    """What a block's attention leaves for those who weigh tokens. float32.

    `weights` [N, H, Q, T]: each row sums to 1. `keys`, `values` [N, H, T, D]. `mixed` [N, T, C]: what the attention
    adds to the tokens."""

    weights: Tensor
    keys: Tensor
    values: Tensor
    mixed: Tensor


class SelfAttention(nn.Module):
    """Scaled dot-product attention of `heads` heads (Vaswani et al., arXiv:1706.03762, section 3.2).

    The heads' width follows from the layers: query and key may be narrower than value once heads are pruned.
    """

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, output: nn.Linear, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output, self.heads = query, key, value, output, heads

    @property
    def head_width(self) -> int:
        return self.query.out_features // self.heads

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Attended:
        """`tokens` [N, T, C]; `bias` is added to the scores, [N or 1, 1, 1, T]: 0 to keep, very low to ignore."""
        query, keys, values = (self._split(layer(tokens)) for layer in (self.query, self.key, self.value))
        scores = (query * (1 / math.sqrt(self.head_width))) @ keys.transpose(2, 3)
        weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
        merged = (weights @ values).transpose(1, 2).flatten(2)
        return Attended(weights, keys, values, self.output(merged))

    def _split(self, projected: Tensor) -> Tensor:
        """[N, T, H x D] -> [N, H, T, D]."""
        batch, count, width = projected.shape
        return projected.reshape(batch, count, self.heads, width // self.heads).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, expand: nn.Linear, activation: nn.Module, contract: nn.Linear) -> None:
        super().__init__()
        self.expand, self.activation, self.contract = expand, activation, contract

    def forward(self, tokens: Tensor) -> Tensor:
        changed: Tensor = self.contract(self.activation(self.expand(tokens)))
        return changed


class EncoderBlock(nn.Module):
    """Attention and feed-forward, each with a residual and a normalization before (`is_prenorm`) or after it."""

    def __init__(
        self,
        attention: SelfAttention,
        feed_forward: FeedForward,
        norm1: nn.Module,
        norm2: nn.Module,
        *,
        is_prenorm: bool,
        scale1: nn.Module | None = None,
        scale2: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.norm1, self.norm2, self.is_prenorm = norm1, norm2, is_prenorm
        self.scale1 = scale1 if scale1 is not None else nn.Identity()
        self.scale2 = scale2 if scale2 is not None else nn.Identity()

    def attend(self, tokens: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Attended]:
        """[N, T, C] -> the same behind the attention, and what it saw."""
        attended = self.attention(self.norm1(tokens) if self.is_prenorm else tokens, bias)
        summed = tokens + self.scale1(attended.mixed)
        behind: Tensor = summed if self.is_prenorm else self.norm1(summed)
        return behind, attended

    def transform(self, tokens: Tensor) -> Tensor:
        """[N, T, C] -> the same behind the feed-forward part."""
        changed = self.scale2(self.feed_forward(self.norm2(tokens) if self.is_prenorm else tokens))
        behind: Tensor = tokens + changed if self.is_prenorm else self.norm2(tokens + changed)
        return behind

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.transform(self.attend(tokens, bias)[0])

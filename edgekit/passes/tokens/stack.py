"""The blocks with fewer tokens from one to the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekit.passes.tokens.reducers import Reducer
from edgekit.passes.tokens.state import Tokens, sizes_of
from edgekit.passes.transformer.block import EncoderBlock


class ReducingStack(nn.Module):
    """`keep[i]` tokens leave block i. `restores`: the answer has all tokens again, each as the one that speaks for
    it."""

    def __init__(
        self,
        blocks: Sequence[EncoderBlock],
        reducer: Reducer,
        keep: Sequence[int],
        protected: int,
        *,
        restores: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.reducer, self.keep, self.protected, self.restores = reducer, tuple(keep), protected, restores

    def forward(self, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """`values` [N, T, C], `bias` [N, 1, 1, T] -> [N, K, C], or [N, T, C] where it restores."""
        owners = None
        if self.restores:
            owners = torch.arange(values.shape[1], device=values.device).expand(values.shape[0], -1)
        tokens = Tokens(values, sizes_of(bias), owners=owners)
        for block, keep in zip(self.blocks, self.keep, strict=True):
            assert isinstance(block, EncoderBlock)
            behind, attended = block.attend(tokens.values, tokens.bias)
            tokens = self.reducer.observe(tokens.with_values(behind), attended, self.protected)
            if keep < tokens.count:
                tokens = self.reducer.reduce(tokens, attended, keep, self.protected)
            tokens = tokens.with_values(block.transform(tokens.values))
        return tokens.restored()

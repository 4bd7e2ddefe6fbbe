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
        tokens = self.start(values, bias)
        for index in range(len(self.blocks)):
            tokens = self.step(index, tokens)
        return tokens.restored()

    def start(self, values: Tensor, bias: Tensor | None, *, owned: bool = False) -> Tokens:
        """The tokens before the first block; `owned`: known of each token who speaks for it, asked for or not."""
        owners = None
        if self.restores or owned:
            owners = torch.arange(values.shape[1], device=values.device).expand(values.shape[0], -1)
        return Tokens(values, sizes_of(bias), owners=owners)

    def step(self, index: int, tokens: Tokens) -> Tokens:
        """The tokens behind block `index`."""
        block, keep = self.blocks[index], self.keep[index]
        assert isinstance(block, EncoderBlock)
        behind, attended = block.attend(tokens.values, tokens.bias)
        tokens = self.reducer.observe(tokens.with_values(behind), attended, self.protected)
        if keep < tokens.count:
            tokens = self.reducer.reduce(tokens, attended, keep, self.protected)
        return tokens.with_values(block.transform(tokens.values))

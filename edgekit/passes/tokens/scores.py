"""How much each token matters, from what a block's attention saw. All give float [N, T]; larger stays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.passes.tokens.state import Tokens
from edgekit.passes.transformer.block import Attended


class Scorer(ABC):
    @abstractmethod
    def score(self, tokens: Tokens, attended: Attended, protected: int) -> Tensor:
        """[N, T]. `protected` leading tokens are no content; their scores are not looked at."""


def received(weights: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Attention mass by key: `weights` [N, H, Q, T] -> [N, T], the mean over heads and queries.

    `sizes` [N, Q]: each query counts as many times, padding not at all."""
    if sizes is None:
        return weights.mean(dim=(1, 2))
    share = sizes / sizes.sum(1, keepdim=True).clamp(min=1e-6)
    return (weights.mean(1) * share.unsqueeze(2)).sum(1)


@dataclass(frozen=True)
class AccumulatedAttention(Scorer):
    """The attention that a token received from all queries and heads, added up over the blocks so far.

    Wang, Zhang, Han: SpAtten, HPCA 2021, section III.A (cascade token pruning).
    """

    def score(self, tokens: Tokens, attended: Attended, protected: int) -> Tensor:
        now = received(attended.weights, tokens.sizes)
        return now if tokens.importance is None else tokens.importance + now


@dataclass(frozen=True)
class ClassAttention(Scorer):
    """The attention of the protected tokens (the class token, which carries the answer) to the others, times the
    length of what it would bring, so that tokens with empty values go first.

    Liang et al.: EViT, arXiv:2202.07800, section 3.2; the values' lengths after Kobayashi et al., arXiv:2004.10102.
    Needs a class token: falls back on what all queries give where there is none.
    """

    with_values: bool = True

    def score(self, tokens: Tokens, attended: Attended, protected: int) -> Tensor:
        seen = attended.weights[:, :, :protected] if protected else attended.weights
        mass = seen.mean(2)
        if self.with_values:
            mass = mass * attended.values.square().sum(-1).sqrt()
        return mass.mean(1)


@dataclass(frozen=True)
class NeighbourAware(Scorer):
    """What `inner` says, and a share of what the token's neighbours in the sequence are given: content lies in
    patches, not in single tokens.

    After the neighbour-aware attention of Zhang et al., Treat Visual Tokens as Text, arXiv:2410.06169. `side`: tokens
    of a row for a square grid; None: neighbours in the sequence alone.
    """

    inner: Scorer
    share: float = 0.5
    side: int | None = None

    def score(self, tokens: Tokens, attended: Attended, protected: int) -> Tensor:
        own = self.inner.score(tokens, attended, protected)
        content = own[:, protected:]
        if self.side is None or content.shape[1] != self.side**2:
            around = torch.nn.functional.avg_pool1d(content.unsqueeze(1), 3, 1, 1, count_include_pad=False)
            smooth = around.squeeze(1)
        else:
            grid = content.reshape(-1, 1, self.side, self.side)
            smooth = torch.nn.functional.avg_pool2d(grid, 3, 1, 1, count_include_pad=False).flatten(1)
        mixed = (1 - self.share) * content + self.share * smooth
        return torch.cat([own[:, :protected], mixed], 1)

"""The tokens of a sequence on their way through the blocks, and what is remembered of those that are gone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Added to a score, it leaves no weight in float16 either, and no row of infinities.
IGNORED = -3e4
LEAST_SIZE = 1e-6
# A mask adds this or less to the scores of padding.
MASKED = -1.0


@dataclass(frozen=True)
class Tokens:
    """`values` [N, T, C]. `sizes` float [N, T]: how many tokens of the input each one stands for, 0 for padding; None
    where each stands for itself. `importance` float [N, T]: accumulated over the blocks so far, None before the first.
    `owners` int64 [N, T0]: which of the T tokens speaks for each one of the input; None where nobody will ask."""

    values: Tensor
    sizes: Tensor | None = None
    importance: Tensor | None = None
    owners: Tensor | None = None

    @property
    def count(self) -> int:
        return self.values.shape[1]

    @property
    def bias(self) -> Tensor | None:
        """[N, 1, 1, T], added to attention scores: a token of size s counts s times (Bolya et al., arXiv:2210.09461,
        section 3.3), padding not at all."""
        if self.sizes is None:
            return None
        counted = torch.log(self.sizes.clamp(min=LEAST_SIZE))
        return torch.where(self.sizes > 0, counted, torch.full_like(counted, IGNORED))[:, None, None, :]

    @property
    def known_sizes(self) -> Tensor:
        return self.sizes if self.sizes is not None else torch.ones_like(self.values[:, :, 0])

    def take(self, indices: Tensor) -> Tokens:
        """Those at `indices` int64 [N, K], in that order. The others are spoken for by the nearest that stays."""
        kept = rows(self.values, indices)
        return Tokens(
            values=kept,
            sizes=None if self.sizes is None else self.sizes.gather(1, indices),
            importance=None if self.importance is None else self.importance.gather(1, indices),
            owners=None if self.owners is None else nearest(self.values, kept, indices).gather(1, self.owners),
        )

    def restored(self) -> Tensor:
        """[N, T0, C]: each token of the input as the one that speaks for it."""
        return self.values if self.owners is None else rows(self.values, self.owners)

    def with_values(self, values: Tensor) -> Tokens:
        return replace(self, values=values)


def sizes_of(bias: Tensor | None) -> Tensor | None:
    """From what a mask adds to the scores, [N, 1, 1, T], to `Tokens.sizes`: 1 for content, 0 for padding."""
    return None if bias is None else (bias[:, 0, 0, :] > MASKED).to(bias.dtype)


def rows(values: Tensor, indices: Tensor) -> Tensor:
    """`values` [N, T, C] at `indices` [N, K] -> [N, K, C].

    Whole rows of one long table: runtimes copy these, where they would look up each of C numbers by an index of its
    own. The places have 32 bits, as indices have in LiteRT.
    """
    batch, count, width = values.shape
    start = torch.arange(batch, device=values.device, dtype=torch.int32) * count
    places = indices.to(torch.int32) + start.unsqueeze(1)
    table = values.reshape(batch * count, width)
    return table.index_select(0, places.flatten()).reshape(batch, indices.shape[1], width)


def nearest(values: Tensor, kept: Tensor, indices: Tensor) -> Tensor:
    """For each of `values` [N, T, C] the most similar of `kept` [N, K, C] by cosine, int64 [N, T]; each of `kept`,
    which is `values` at `indices`, is its own."""
    similar = unit(values) @ unit(kept).transpose(1, 2)
    own = torch.arange(values.shape[1], device=values.device)[None, :, None] == indices[:, None, :]
    return (similar + 3.0 * own.to(similar.dtype)).argmax(2)


def unit(values: Tensor) -> Tensor:
    """Each row at length 1."""
    return values / values.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()

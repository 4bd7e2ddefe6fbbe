"""Which attention heads matter, from what they add to the tokens: tensors in, tensors out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the mean variance, added to each: keeps the least squares solvable where two heads say the same.
RIDGE = 1e-4


@dataclass
class Moments:
    """Of the heads' joint output, rows of width D = heads x width: their `count`, `total` [D] and `square` [D, D], and
    `size` [heads], the sum of absolute values."""

    heads: int
    count: int
    total: Tensor
    square: Tensor
    size: Tensor

    @classmethod
    def none(cls, width: int, heads: int) -> Moments:
        zeros = torch.zeros(width, dtype=torch.float64)
        return cls(heads, 0, zeros, torch.zeros(width, width, dtype=torch.float64), zeros.new_zeros(heads))

    def add(self, rows: Tensor) -> None:
        """`rows` [n, D]."""
        wide = rows.double()
        self.count += len(wide)
        self.total += wide.sum(0)
        self.square += wide.T @ wide
        self.size += wide.abs().reshape(len(wide), self.heads, -1).sum((0, 2))

    @property
    def mean(self) -> Tensor:
        return self.total / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        return self.square / max(self.count, 1) - torch.outer(self.mean, self.mean)


def activity(moments: Moments, output: Tensor) -> Tensor:
    """How much of the variance that a block's attention adds comes from each head, float64 [heads]; sums to 1 where
    heads are independent. `output` [C, D]: the projection behind the heads. A head that always adds the same is
    inactive: a bias does its work.

    After the inactive heads of Zhang et al., Treat Visual Tokens as Text, arXiv:2410.06169.
    """
    width = output.shape[1] // moments.heads
    own = []
    for head in range(moments.heads):
        part = slice(head * width, (head + 1) * width)
        weight = output[:, part].double()
        own.append((weight @ moments.covariance[part, part] * weight).sum())
    found = torch.stack(own).clamp(min=0)
    return found / found.sum().clamp(min=1e-30)


def strongest(importance: Tensor, share: float) -> list[list[int]]:
    """`importance` [blocks, heads] -> by block the heads that stay, in their order: `share` of all of them, the most
    important ones whatever their block, at least one in each."""
    blocks, heads = importance.shape
    left = max(blocks, round(share * blocks * heads))
    sure = importance.argmax(1)
    ranked = importance.clone()
    ranked[torch.arange(blocks), sure] = torch.inf
    chosen = ranked.flatten().topk(left).indices
    return [sorted(int(i) % heads for i in chosen if int(i) // heads == block) for block in range(blocks)]


def cascade(importance: Tensor, share: float) -> list[list[int]]:
    """`importance` [blocks, heads] -> by block the heads that stay: `share` of them on average, ever fewer, by the
    importance accumulated over the blocks so far; a head once gone is gone behind too.

    Wang, Zhang, Han: SpAtten, arXiv:2012.09852, section III.B (cascade head pruning).
    """
    blocks, heads = importance.shape
    kept = list(range(heads))
    total = torch.zeros(heads, dtype=importance.dtype)
    found = []
    for block in range(blocks):
        total = total + importance[block]
        falling = 1 - (1 - share) * 2 * (block + 1) / (blocks + 1)
        count = max(1, min(len(kept), round(heads * falling)))
        kept = sorted(sorted(kept, key=lambda head: -float(total[head]))[:count])
        found.append(kept)
    return found


def refit(output: Tensor, moments: Moments, kept: list[int]) -> tuple[Tensor, Tensor]:
    """The projection [C, K] of the `kept` heads and a bias [C] that come nearest to what all heads added, by least
    squares over the calibration rows. `output` [C, D], without its bias."""
    columns = columns_of(kept, output.shape[1] // moments.heads)
    covariance, weight = moments.covariance, output.double()
    own = covariance[columns][:, columns]
    ridge = RIDGE * own.diagonal().mean().clamp(min=1e-12)
    # Towards the weights as they are, not towards zero: where calibration says nothing they stay.
    target = weight @ covariance[:, columns] + ridge * weight[:, columns]
    solved = torch.linalg.solve(own + ridge * torch.eye(len(columns), dtype=own.dtype), target.T).T
    bias = weight @ moments.mean - solved @ moments.mean[columns]
    return solved.to(output.dtype), bias.to(output.dtype)


def columns_of(heads: list[int], width: int) -> Tensor:
    """int64: where `heads` of `width` lie in the joint output."""
    return torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])

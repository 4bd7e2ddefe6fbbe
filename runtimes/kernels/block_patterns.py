"""Which blocks of keys a block of queries attends to, as compressed rows, and the means of blocks.

Powers of two: row r attends to columns r - d for d < recent and for d = 1, 2, 4, 8, ... A distance of n blocks is
crossed in as many layers as n has ones in binary, so that d layers see the nearest 2^d blocks without a gap
(PowerAttention, arXiv:2503.03588).

G: batch times heads, R: rows, C: columns. A row is `block` queries, the last one less; a column is any run of keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Pattern:
    """int32. Keys of column c: starts[g, c] : starts[g, c + 1], starts [G, C + 1]. Columns that row r attends to:
    columns[offsets[g, r] : offsets[g, r + 1]], offsets [G, R + 1]."""

    starts: Tensor
    offsets: Tensor
    columns: Tensor
    block: int


def pack(chosen: Tensor, starts: Tensor, block: int) -> Pattern:
    """bool [G, R, C] and int32 [G, C + 1] in compressed rows."""
    counts = chosen.sum(2)
    ends = counts.flatten().cumsum(0).reshape(counts.shape)
    first = (ends - counts)[:, :1] if counts.shape[1] else ends.new_zeros(len(ends), 1)
    return Pattern(starts, torch.cat([first, ends], 1).int(), chosen.nonzero()[:, 2].int(), block)


def selected(starts: Tensor, offsets: Tensor, columns: Tensor) -> Tensor:
    """The pattern as bool [G, R, C]."""
    groups, rows, blocks = len(starts), offsets.shape[1] - 1, starts.shape[1] - 1
    lengths = offsets.long().diff(dim=1).flatten()
    row = torch.repeat_interleave(torch.arange(len(lengths), device=starts.device), lengths, output_size=len(columns))
    found = torch.zeros(groups * rows, blocks, dtype=torch.bool, device=starts.device)
    found[row, columns.long()] = True
    return found.reshape(groups, rows, blocks)


def summarise(tokens: Tensor, starts: Tensor) -> Tensor:
    """[G, M, D], int32 [G, C + 1] -> the mean of each column [G, C, D], 0 of an empty one."""
    sums = pad(tokens.double().cumsum(1), (0, 0, 1, 0))
    ends = sums.gather(1, starts.long()[:, :, None].expand(-1, -1, tokens.shape[2]))
    return (ends.diff(dim=1) / starts.diff(dim=1).clamp(min=1)[:, :, None]).to(tokens.dtype)


def power_of_two(groups: int, length: int, block: int, recent: int = 2, device: torch.device | str = "cpu") -> Pattern:
    """For causal attention among `length` tokens, alike in all groups. `recent`: of the nearest blocks, all."""
    rows = torch.arange(-(-length // block), device=device)
    ago = rows[:, None] - rows[None, :]
    chosen = (ago >= 0) & ((ago < recent) | (ago & (ago - 1) == 0))  # 0 and powers of two have no two bits
    starts = torch.cat([rows * block, rows.new_tensor([length])]).int()
    return pack(chosen.expand(groups, -1, -1), starts.repeat(groups, 1), block)

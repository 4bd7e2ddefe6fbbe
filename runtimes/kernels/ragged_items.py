"""Coded features of many devices back to back, and what a symbol of theirs stands for; shared by the ragged kernels.

    z[b, k, p] = step[r, k] (q + offset[class[r, k, p], bucket(q)])   for k < kept[b], r = rate[b], q = symbol[b, k, p]

Layout and types: ragged_decode.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.runtimes.cubins.ragged_decode import pack_symbols
from edgekit.runtimes.kernels.tiles import narrow


@dataclass(frozen=True)
class Items:
    """Symbols of all items and where they lie, see ragged_decode.py."""

    symbols: Tensor
    starts: Tensor
    kept: Tensor
    rates: Tensor


def pack_items(symbols: Sequence[np.ndarray], rates: Sequence[int]) -> Items:
    """`symbols`: int32 [kept, 1, positions] of each item. Raises UsageError for one that int16 does not hold."""
    packed = pack_symbols(symbols, rates)
    return Items(*(torch.from_numpy(one) for one in (packed.symbols, packed.starts, packed.kept, packed.rates)))


def coefficients_reference(items: Items, steps: Tensor, classes: Tensor, offsets: Tensor, positions: int) -> Tensor:
    """float32 z [B, components, positions], 0 for what is not sent."""
    reach = offsets.shape[1] // 2
    values = torch.zeros(len(items.kept), steps.shape[1], positions, device=items.symbols.device)
    rows = zip(items.starts.tolist(), items.kept.tolist(), items.rates.tolist(), strict=False)
    for item, (first, count, rate) in enumerate(rows):
        whole = items.symbols[first : first + count * positions].reshape(count, positions).long()
        added = offsets[classes[rate, :count].long(), whole.clamp(-reach, reach) + reach]
        values[item, :count] = (whole + added) * steps[rate, :count, None]
    return values


@triton.jit
def coefficients(
    symbols, steps, classes, offsets, first_row, rows, places, sent, inside, positions,
    REACH: tl.constexpr, BY_POSITION: tl.constexpr,
):  # fmt: skip
    """z [P, K] of the item whose symbols begin at `symbols`: components `rows` where `sent`, positions `places` where
    `inside`. `first_row`: of its rate in the tables."""
    where = inside[:, None] & sent[None, :]
    whole = tl.load(symbols + rows[None, :] * positions + places[:, None], mask=where, other=0).to(tl.int32)
    bucket = tl.minimum(tl.maximum(whole, -REACH), REACH) + REACH
    row = first_row + rows
    if BY_POSITION:
        kind = tl.load(classes + row[None, :].to(tl.int64) * positions + places[:, None], mask=where, other=0)
    else:
        kind = tl.load(classes + row, mask=sent, other=0)[None, :]
    added = tl.load(offsets + kind.to(tl.int32) * (2 * REACH + 1) + bucket, mask=where, other=0.0)
    return (whole.to(tl.float32) + added) * tl.load(steps + row, mask=sent, other=0.0)[None, :]


@triton.jit
def store_dense(
    dense, value, item, places, channels, inside, real, positions, CHANNELS: tl.constexpr, FIRST: tl.constexpr
):  # fmt: skip
    """A tile [P, C] into the batch, channels first or last."""
    before = dense + item.to(tl.int64) * positions * CHANNELS
    if FIRST:
        at = before + channels[None, :] * positions + places[:, None]
    else:
        at = before + places[:, None] * CHANNELS + channels[None, :]
    tl.store(at, narrow(value, dense.dtype.element_ty), mask=inside[:, None] & real[None, :])


def scene(
    kept: Sequence[int], components: int, channels: int, positions: int, largest: int = 9, device: Any = "cpu",
    by_position: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Three rates with steps of their own, five classes of offsets; `kept` components in each item."""
    generator = torch.Generator(device).manual_seed(len(kept) + components)
    on: dict[str, Any] = {"generator": generator, "device": device}
    counts = torch.tensor(kept, dtype=torch.int32, device=device)
    starts = torch.nn.functional.pad(counts.cumsum(0) * positions, (1, 0)).to(torch.int32)
    kind = torch.int8 if largest < 128 else torch.int16
    symbols = torch.randint(-largest, largest + 1, (sum(kept) * positions,), **on).to(kind)
    rates = torch.randint(3, (len(kept),), **on).to(torch.int32)
    steps, means = 0.1 + torch.rand(3, components, **on), torch.randn(3, components, **on)
    classes = torch.randint(5, (3, components, positions if by_position else 1), **on).to(torch.uint8)
    offsets = 0.4 * torch.rand(5, 7, **on) - 0.2
    return symbols, starts, counts, rates, steps, means, classes, offsets, torch.randn(components, channels, **on)

"""Features of one cut from many devices, each at its own rate: dequantized, transformed back and laid out densely.

    z[b, k, p] = step[r, k] (q + offset[class[r, k, p], bucket(q)])   for k < kept[b], r = rate[b], q = symbol[b, k, p]
    y[b, p, c] = sum_k (mean[r, k] + z[b, k, p]) inverse[k, c]

Items lie back to back, each component-major as TransformCodec.symbols gives them for a batch of one:

    symbols  int8 or int16 [sum of kept positions]    b: symbols[starts[b] : starts[b + 1]], as [kept[b], positions]
    starts   int32 [B + 1]      kept, rates  int32 [B]
    steps, means  float32 [rates, components]         offsets  float32 [classes, 2 reach + 1]
    classes  uint8 [rates, components, positions], or [rates, components, 1] for all positions alike
    inverse  float32 [components, channels]           y  bf16 or float32 [B, positions, channels], or channels first

bucket(q) = clip(q, -reach, reach) + reach. An item carries its first kept[b] components, the most important ones; the
others read as their mean. Starts and kept that contradict each other are not found out.

The dense batch, the largest array by far, is written once and nothing lies between it and the symbols: no padded
symbols, no coefficients. Symbols are read once for up to 512 channels. The values are TransformCodec's, bit for bit in
float32 where the inverse is the identity and the mean zero (background: Goyal, Theoretical Foundations of Transform
Coding); the fusion and its layout are this project's own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.runtimes.codecs.base import Codec
from edgekit.runtimes.codecs.transform import BUCKETS, TransformCodec
from edgekit.runtimes.cubins.ragged_decode import channels_first, rate_tables
from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call
from edgekit.runtimes.kernels.choice import choose
from edgekit.runtimes.kernels.ragged_items import (
    Items,
    coefficients,
    coefficients_reference,
    pack_items,
    scene,
    store_dense,
)

__all__ = ["DECODE", "Items", "Tables", "decode", "pack_items", "tables_of"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tables:
    """What a rate means for each component, and the way back to channels, see above."""

    steps: Tensor
    means: Tensor
    classes: Tensor
    offsets: Tensor
    inverse: Tensor


def tables_of(codec: TransformCodec, inverse: Tensor, mean: Tensor | None = None) -> Tables:
    """`inverse` float32 [components, channels] and `mean` float32 [components] (default: zero) that the tail undoes.

    Raises UsageError for rates that do not send leading channels, or an inverse of other components.
    """
    tables = rate_tables(codec)
    rates, components = tables.steps.shape
    if len(inverse) != components:
        raise UsageError(f"an inverse transform of {len(inverse)} components, allowed the {components} of the codec")
    means = torch.zeros(components) if mean is None else mean
    steps, classes, offsets = (torch.from_numpy(one) for one in (tables.steps, tables.classes, tables.offsets))
    return Tables(steps, means.expand(rates, components).contiguous(), classes, offsets, inverse)


def decode(
    items: Items, tables: Tables, positions: int, dtype: torch.dtype = torch.bfloat16, channels_first: bool = False
) -> Tensor:
    """[B, positions, channels], or [B, channels, positions], of `dtype` bfloat16 or float32.

    Raises UsageError where the classes go by other positions.
    """
    if tables.classes.shape[2] not in (1, positions):
        raise UsageError(
            f"{positions} positions, allowed the {tables.classes.shape[2]} that the tables have classes for"
        )
    found: Tensor = call(
        DECODE, items.symbols, items.starts, items.kept, items.rates,
        tables.steps, tables.means, tables.classes, tables.offsets, tables.inverse, positions, dtype, channels_first,
    )  # fmt: skip
    return found


def _reference(
    symbols: Tensor, starts: Tensor, kept: Tensor, rates: Tensor, steps: Tensor, means: Tensor, classes: Tensor,
    offsets: Tensor, inverse: Tensor, positions: int, dtype: torch.dtype = torch.bfloat16, channels_first: bool = False,
) -> Tensor:  # fmt: skip
    values = coefficients_reference(Items(symbols, starts, kept, rates), steps, classes, offsets, positions)
    dense = (values.transpose(1, 2) @ inverse + (means @ inverse)[rates.long()][:, None]).to(dtype)
    return dense.transpose(1, 2).contiguous() if channels_first else dense


@triton.jit
def _decode_kernel(
    symbols, starts, kept, rates, steps, classes, offsets, base, inverse, dense, positions,
    COMPONENTS: tl.constexpr, CHANNELS: tl.constexpr, REACH: tl.constexpr, BY_POSITION: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    parts: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    item = tl.program_id(1)
    places = tl.program_id(0) // parts * BLOCK_P + tl.arange(0, BLOCK_P)
    channels = tl.program_id(0) % parts * BLOCK_C + tl.arange(0, BLOCK_C)
    inside, real = places < positions, channels < CHANNELS
    count, rate, start = tl.load(kept + item), tl.load(rates + item), tl.load(starts + item)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for first in range(0, count, BLOCK_K):
        rows = first + tl.arange(0, BLOCK_K)
        sent = rows < count
        value = coefficients(
            symbols + start, steps, classes, offsets, rate * COMPONENTS, rows, places, sent, inside, positions,
            REACH, BY_POSITION,
        )  # fmt: skip
        back = tl.load(
            inverse + rows[:, None] * CHANNELS + channels[None, :], mask=sent[:, None] & real[None, :], other=0.0
        )
        total = tl.dot(value, back, total, input_precision="tf32x3" if EXACT else "tf32")
    total += tl.load(base + rate * CHANNELS + channels, mask=real, other=0.0)[None, :]
    store_dense(dense, total, item, places, channels, inside, real, positions, CHANNELS, CHANNELS_FIRST)


CONFIGS = (
    Config({"BLOCK_P": 16, "BLOCK_K": 16, "BLOCK_C": 512}, warps=8, stages=2),
    Config({"BLOCK_P": 32, "BLOCK_K": 16, "BLOCK_C": 256}, warps=8, stages=2),
    Config({"BLOCK_P": 32, "BLOCK_K": 32, "BLOCK_C": 64}, warps=4, stages=2),
)


def _config(channels: int) -> Config:
    return choose(CONFIGS, 2 if channels <= 64 else 1 if channels <= 256 else 0)


def _launch(
    symbols: Tensor, starts: Tensor, kept: Tensor, rates: Tensor, steps: Tensor, means: Tensor, classes: Tensor,
    offsets: Tensor, inverse: Tensor, positions: int, dtype: torch.dtype = torch.bfloat16, channels_first: bool = False,
) -> Tensor:  # fmt: skip
    count, (components, channels) = len(kept), inverse.shape
    shape = (count, channels, positions) if channels_first else (count, positions, channels)
    dense = torch.empty(shape, dtype=dtype, device=symbols.device)
    config = _config(channels)
    blocks = triton.cdiv(positions, config.constants["BLOCK_P"]) * triton.cdiv(channels, config.constants["BLOCK_C"])
    if dense.numel():
        _decode_kernel[(blocks, count)](
            symbols.contiguous(), starts, kept, rates, steps.contiguous(), classes.contiguous(), offsets.contiguous(),
            means @ inverse, inverse.contiguous(), dense, positions,
            COMPONENTS=components, CHANNELS=channels, REACH=offsets.shape[1] // 2,
            BY_POSITION=int(classes.shape[2] > 1), CHANNELS_FIRST=int(channels_first),
            EXACT=int(dtype == torch.float32), **config.constants, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return dense


def _cost(
    symbols: Tensor, starts: Tensor, kept: Tensor, rates: Tensor, steps: Tensor, means: Tensor, classes: Tensor,
    offsets: Tensor, inverse: Tensor, positions: int, dtype: torch.dtype = torch.bfloat16, channels_first: bool = False,
) -> Cost:  # fmt: skip
    channels = inverse.shape[1]
    read = sum(one.nbytes for one in (symbols, starts, kept, rates, steps, means, classes, offsets, inverse))
    written = len(kept) * positions * channels * dtype.itemsize
    return Cost(symbols.numel() * (2.0 * channels + 2.0), float(read + written))


def _examples() -> Sequence[Example]:
    rounded = {
        "tolerance": 2.0**-7,
        "why": "one unit in the last place, where a result lies at the middle of two",
    }
    plain = torch.float32
    return [
        Example("odd", (*scene([5, 2, 7], 7, 19, 11), 11, plain)),
        Example("odd, bf16", (*scene([5, 2, 7], 7, 19, 11), 11), **rounded),  # type: ignore[arg-type]
        Example("odd, channels first", (*scene([3, 6], 6, 5, 9), 9, plain, True)),
        Example("classes by position", (*scene([5, 2, 7], 7, 19, 11, by_position=True), 11, plain)),
        Example("more than a tile by position", (*scene([40, 3], 40, 70, 67, by_position=True), 67, plain, True)),
        Example("more than a tile", (*scene([40, 33], 40, 70, 67), 67, plain)),
        Example("more channels than a tile", (*scene([3], 4, 515, 3), 3, plain)),
        Example("an item without components", (*scene([0, 4, 0], 4, 6, 5), 5, plain)),
        Example("no items", (*scene([], 4, 6, 5), 5, plain)),
        Example("no positions", (*scene([2, 1], 4, 6, 0), 0, plain)),
        Example("one of each", (*scene([1], 1, 1, 1), 1, plain)),
        Example("the largest symbols of int16", (*scene([4, 1], 5, 6, 7, 32767), 7, plain)),
        Example("the largest symbols of int8", (*scene([4, 1], 5, 6, 7, 127), 7, plain)),
    ]


def _load(device: torch.device) -> tuple[Any, ...]:
    """256 devices, 14 x 14 positions of 384 channels, from 24 to 96 components with classes by position."""
    return *scene([24, 48, 64, 96] * 64, 96, 384, 196, 100, device, by_position=True), 196


_POINTERS = {
    "starts": "*i32", "kept": "*i32", "rates": "*i32", "steps": "*fp32", "classes": "*u8", "offsets": "*fp32",
    "base": "*fp32", "inverse": "*fp32", "positions": "i32",
}  # fmt: skip


_DENSE = ("*bf16", "*fp32")


def _entry(symbols: str, dense: str, shape: tuple[int, int, bool, bool], configs: Sequence[Config]) -> Entry:
    """`shape`: components, channels, whether classes go by position, whether channels come first."""
    components, channels, by_position, first = shape
    sizes = {
        "COMPONENTS": components, "CHANNELS": channels, "REACH": BUCKETS, "BY_POSITION": int(by_position),
        "CHANNELS_FIRST": int(first), "EXACT": int(dense == "*fp32"),
    }  # fmt: skip
    made = tuple(Config({**one.constants, **sizes}, one.warps, one.stages) for one in configs)
    return Entry(_decode_kernel, {"symbols": symbols, "dense": dense, **_POINTERS}, made)


def _entries_for(codec: Codec) -> tuple[Entry, ...]:
    """For a rotation into as many channels as this codec has components, in both widths of symbols and both types of
    result."""
    if not isinstance(codec, TransformCodec):
        return ()
    try:
        tables, first = rate_tables(codec), channels_first(codec)
    except UsageError as error:
        logger.warning("no kernel is compiled for this codec: %s", error.message)
        return ()
    count = tables.classes.shape[1]
    shape = count, count, tables.per_position, first
    kinds = [(symbols, dense) for dense in _DENSE for symbols in ("*i8", "*i16")]
    return tuple(_entry(symbols, dense, shape, (_config(count),)) for symbols, dense in kinds)


DECODE = Kernel(
    name="ragged-decode",
    formula="y = (mean + step (q + offset)) inverse, at each item's own rate",
    source="edgekit's transform codec, fused",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(
        _entry("*i8", "*bf16", (96, 384, False, True), CONFIGS),
        *(_entry(symbols, dense, (96, 384, True, False), CONFIGS) for symbols in ("*i8", "*i16") for dense in _DENSE),
    ),
    entries_for=_entries_for,
)

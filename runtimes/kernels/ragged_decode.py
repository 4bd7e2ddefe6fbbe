"""Features of one cut from many devices, each at its own rate: dequantized, transformed back and laid out densely.

    z[b, k, p] = step[r, k] (q + offset[r, k, bucket(q)])   for k < kept[b], with r = rate[b], q = symbol[b, k, p]
    y[b, p, c] = sum_k (mean[r, k] + z[b, k, p]) inverse[k, c]

Items lie back to back, each component-major as TransformCodec.symbols gives them for a batch of one:

    symbols  int8 or int16 [sum of kept positions]    b: symbols[starts[b] : starts[b + 1]], as [kept[b], positions]
    starts   int32 [B + 1]      kept, rates  int32 [B]
    steps, means  float32 [rates, components]         offsets  float32 [rates, components, 2 reach + 1]
    inverse  float32 [components, channels]           y  bf16 or float32 [B, positions, channels], or channels first

bucket(q) = clip(q, -reach, reach) + reach. An item carries its first kept[b] components, the most important ones; the
others read as their mean. Starts and kept that contradict each other are not found out.

The dense batch, the largest array by far, is written once and nothing lies between it and the symbols: no padded
symbols, no coefficients. Symbols are read once for up to 512 channels. The values are TransformCodec's, bit for bit in
float32 where the inverse is the identity and the mean zero (background: Goyal, Theoretical Foundations of Transform
Coding); the fusion and its layout are this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call

if TYPE_CHECKING:
    from edgekit.runtimes.codecs.transform import TransformCodec


@dataclass(frozen=True)
class Items:
    """Symbols of all items and where they lie, see above."""

    symbols: Tensor
    starts: Tensor
    kept: Tensor
    rates: Tensor


@dataclass(frozen=True)
class Tables:
    """What a rate means for each component, and the way back to channels, see above."""

    steps: Tensor
    means: Tensor
    offsets: Tensor
    inverse: Tensor


def pack_items(symbols: Sequence[np.ndarray], rates: Sequence[int]) -> Items:
    """`symbols`: int32 [kept, 1, positions] of each item. Raises UsageError for one that int16 does not hold."""
    flat = np.concatenate([one.ravel() for one in symbols]) if symbols else np.zeros(0, np.int32)
    largest = int(np.abs(flat).max(initial=0))
    if largest > 32767:
        raise UsageError(f"a symbol of magnitude {largest}, allowed 32767", hint="decode this item by its codec")
    kept = torch.tensor([len(one) for one in symbols], dtype=torch.int32)
    starts = torch.tensor(np.cumsum([0, *(one.size for one in symbols)]), dtype=torch.int32)
    narrow = torch.from_numpy(flat.astype(np.int8 if largest <= 127 else np.int16))
    return Items(narrow, starts, kept, torch.tensor(list(rates), dtype=torch.int32))


def tables_of(codec: TransformCodec, inverse: Tensor, mean: Tensor | None = None) -> Tables:
    """`inverse` float32 [components, channels] and `mean` float32 [components] (default: zero) that the tail undoes.

    Raises UsageError for tables with a class for each position, or rates that do not send leading channels.
    """
    rates, components = codec.index.shape
    if codec.per_position or any((one.channels != np.arange(len(one.channels))).any() for one in codec.layouts):
        raise UsageError("a codec with classes by position or gaps in its channels, allowed leading channels alone")
    if len(inverse) != components:
        raise UsageError(f"an inverse transform of {len(inverse)} components, allowed the {components} of the codec")
    steps = torch.tensor([float(one.step) for one in codec.layouts]).reshape(rates, 1).expand(rates, components)
    means = torch.zeros(components) if mean is None else mean
    classes = np.minimum(codec.index, len(codec.offsets) - 1)  # what is not sent has no class, and is not read
    offsets = torch.from_numpy(codec.offsets[classes])
    return Tables(steps.contiguous(), means.expand(rates, components).contiguous(), offsets, inverse)


def decode(
    items: Items, tables: Tables, positions: int, dtype: torch.dtype = torch.bfloat16, channels_first: bool = False
) -> Tensor:
    """[B, positions, channels], or [B, channels, positions], of `dtype` bfloat16 or float32."""
    found: Tensor = call(
        DECODE, items.symbols, items.starts, items.kept, items.rates,
        tables.steps, tables.means, tables.offsets, tables.inverse, positions, dtype, channels_first,
    )  # fmt: skip
    return found


def _reference(
    symbols: Tensor, starts: Tensor, kept: Tensor, rates: Tensor, steps: Tensor, means: Tensor, offsets: Tensor,
    inverse: Tensor, positions: int, dtype: torch.dtype = torch.bfloat16, channels_first: bool = False,
) -> Tensor:  # fmt: skip
    reach, chosen = offsets.shape[2] // 2, rates.long()
    values = torch.zeros(len(kept), len(inverse), positions, device=symbols.device)
    for item, (first, count, rate) in enumerate(zip(starts.tolist(), kept.tolist(), rates.tolist(), strict=False)):
        whole = symbols[first : first + count * positions].reshape(count, positions).long()
        added = offsets[rate, :count].gather(1, whole.clamp(-reach, reach) + reach)
        values[item, :count] = (whole + added) * steps[rate, :count, None]
    dense = (values.transpose(1, 2) @ inverse + (means @ inverse)[chosen][:, None]).to(dtype)
    return dense.transpose(1, 2).contiguous() if channels_first else dense


@triton.jit
def _decode_kernel(
    symbols, starts, kept, rates, steps, offsets, base, inverse, dense, positions,
    COMPONENTS: tl.constexpr, CHANNELS: tl.constexpr, REACH: tl.constexpr, CHANNELS_FIRST: tl.constexpr,
    EXACT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
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
        where = inside[:, None] & sent[None, :]
        whole = tl.load(symbols + start + rows[None, :] * positions + places[:, None], mask=where, other=0).to(tl.int32)
        bucket = tl.minimum(tl.maximum(whole, -REACH), REACH) + REACH
        row = rate * COMPONENTS + rows
        added = tl.load(offsets + row[None, :] * (2 * REACH + 1) + bucket, mask=sent[None, :], other=0.0)
        step = tl.load(steps + row, mask=sent, other=0.0)
        value = (whole.to(tl.float32) + added) * step[None, :]
        back = tl.load(
            inverse + rows[:, None] * CHANNELS + channels[None, :], mask=sent[:, None] & real[None, :], other=0.0
        )
        total = tl.dot(value, back, total, input_precision="tf32x3" if EXACT else "tf32")
    total += tl.load(base + rate * CHANNELS + channels, mask=real, other=0.0)[None, :]
    before = dense + item.to(tl.int64) * positions * CHANNELS
    if CHANNELS_FIRST:
        at = before + channels[None, :] * positions + places[:, None]
    else:
        at = before + places[:, None] * CHANNELS + channels[None, :]
    tl.store(at, total.to(dense.dtype.element_ty), mask=inside[:, None] & real[None, :])


CONFIGS = (
    Config({"BLOCK_P": 16, "BLOCK_K": 16, "BLOCK_C": 512}, warps=8, stages=2),
    Config({"BLOCK_P": 32, "BLOCK_K": 16, "BLOCK_C": 256}, warps=8, stages=2),
    Config({"BLOCK_P": 32, "BLOCK_K": 32, "BLOCK_C": 64}, warps=4, stages=2),
)


def _launch(
    symbols: Tensor, starts: Tensor, kept: Tensor, rates: Tensor, steps: Tensor, means: Tensor, offsets: Tensor,
    inverse: Tensor, positions: int, dtype: torch.dtype = torch.bfloat16, channels_first: bool = False,
) -> Tensor:  # fmt: skip
    count, (components, channels) = len(kept), inverse.shape
    shape = (count, channels, positions) if channels_first else (count, positions, channels)
    dense = torch.empty(shape, dtype=dtype, device=symbols.device)
    config = CONFIGS[2 if channels <= 64 else 1 if channels <= 256 else 0]
    blocks = triton.cdiv(positions, config.constants["BLOCK_P"]) * triton.cdiv(channels, config.constants["BLOCK_C"])
    if dense.numel():
        _decode_kernel[(blocks, count)](
            symbols.contiguous(), starts, kept, rates, steps.contiguous(), offsets.contiguous(), means @ inverse,
            inverse.contiguous(), dense, positions,
            COMPONENTS=components, CHANNELS=channels, REACH=offsets.shape[2] // 2, CHANNELS_FIRST=int(channels_first),
            EXACT=int(dtype == torch.float32), **config.constants, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return dense


def _cost(
    symbols: Tensor, starts: Tensor, kept: Tensor, rates: Tensor, steps: Tensor, means: Tensor, offsets: Tensor,
    inverse: Tensor, positions: int, dtype: torch.dtype = torch.bfloat16, channels_first: bool = False,
) -> Cost:  # fmt: skip
    channels = inverse.shape[1]
    read = sum(one.nbytes for one in (symbols, starts, kept, rates, steps, means, offsets, inverse))
    written = len(kept) * positions * channels * dtype.itemsize
    return Cost(symbols.numel() * (2.0 * channels + 2.0), float(read + written))


def _scene(
    kept: Sequence[int], components: int, channels: int, positions: int, largest: int = 9, device: Any = "cpu"
) -> tuple[Tensor, ...]:
    """Three rates with steps and offsets of their own; `kept` components in each item."""
    generator = torch.Generator(device).manual_seed(len(kept) + components)
    on: dict[str, Any] = {"generator": generator, "device": device}
    counts = torch.tensor(kept, dtype=torch.int32, device=device)
    starts = torch.nn.functional.pad(counts.cumsum(0) * positions, (1, 0)).to(torch.int32)
    kind = torch.int8 if largest < 128 else torch.int16
    symbols = torch.randint(-largest, largest + 1, (sum(kept) * positions,), **on).to(kind)
    rates = torch.randint(3, (len(kept),), **on).to(torch.int32)
    steps, means = 0.1 + torch.rand(3, components, **on), torch.randn(3, components, **on)
    offsets = 0.4 * torch.rand(3, components, 7, **on) - 0.2
    return symbols, starts, counts, rates, steps, means, offsets, torch.randn(components, channels, **on)


def _examples() -> Sequence[Example]:
    rounded = {
        "tolerance": 2.0**-7,
        "why": "the interpreter cuts bf16 off where a GPU rounds: one step, 2^-7 of the largest at most",
    }
    plain = torch.float32
    return [
        Example("odd", (*_scene([5, 2, 7], 7, 19, 11), 11, plain)),
        Example("odd, bf16", (*_scene([5, 2, 7], 7, 19, 11), 11), **rounded),  # type: ignore[arg-type]
        Example("odd, channels first", (*_scene([3, 6], 6, 5, 9), 9, plain, True)),
        Example("more than a tile", (*_scene([40, 33], 40, 70, 67), 67, plain)),
        Example("more channels than a tile", (*_scene([3], 4, 515, 3), 3, plain)),
        Example("an item without components", (*_scene([0, 4, 0], 4, 6, 5), 5, plain)),
        Example("no items", (*_scene([], 4, 6, 5), 5, plain)),
        Example("no positions", (*_scene([2, 1], 4, 6, 0), 0, plain)),
        Example("one of each", (*_scene([1], 1, 1, 1), 1, plain)),
        Example("the largest symbols of int16", (*_scene([4, 1], 5, 6, 7, 32767), 7, plain)),
        Example("the largest symbols of int8", (*_scene([4, 1], 5, 6, 7, 127), 7, plain)),
    ]


def _load(device: torch.device) -> tuple[Any, ...]:
    """256 devices, 14 x 14 positions of 384 channels, from 24 to 96 components."""
    return *_scene([24, 48, 64, 96] * 64, 96, 384, 196, 100, device), 196


_POINTERS = {
    "starts": "*i32", "kept": "*i32", "rates": "*i32", "steps": "*fp32", "offsets": "*fp32", "base": "*fp32",
    "inverse": "*fp32", "positions": "i32",
}  # fmt: skip


def _entry(symbols: str, dense: str, exact: int, first: int) -> Entry:
    sizes = {"COMPONENTS": 96, "CHANNELS": 384, "REACH": 3, "CHANNELS_FIRST": first, "EXACT": exact}
    configs = tuple(Config({**one.constants, **sizes}, one.warps, one.stages) for one in CONFIGS)
    return Entry(_decode_kernel, {"symbols": symbols, "dense": dense, **_POINTERS}, configs)


DECODE = Kernel(
    name="ragged-decode",
    formula="y = (mean + step (q + offset)) inverse, at each item's own rate",
    source="edgekit's transform codec, fused",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(_entry("*i8", "*bf16", 0, 0), _entry("*i8", "*bf16", 0, 1), _entry("*i16", "*fp32", 1, 0)),
)

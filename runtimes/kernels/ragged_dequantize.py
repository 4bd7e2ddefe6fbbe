"""Features of one cut from many devices where the tail undoes the transform itself: dequantized and laid out densely.

    y[b, p, k] = mean[r, k] + z[b, k, p]       z, types and layout: ragged_decode.py, with components for channels

What edgekit exports folds its rotation into head and tail, so this is what its bundles need: no product, and in float32
TransformCodec's values bit for bit (a fused multiply-add with a mean of 0 rounds as the product does). Symbols, classes
and the dense batch cross memory once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from edgekit.runtimes.kernels.ragged_items import Items, coefficients, coefficients_reference, scene, store_dense

logger = logging.getLogger(__name__)


def dequantize(
    items: Items, codec: TransformCodec, positions: int, dtype: torch.dtype = torch.bfloat16, device: str = "cpu"
) -> Tensor:
    """The batch of `codec`, [B, components, positions] where its channels come first, else [B, positions, components].

    Raises UsageError where the kernel cannot decode what this codec sends, or its classes go by other positions.
    """
    tables, first = rate_tables(codec), channels_first(codec)
    if tables.per_position and tables.classes.shape[2] != positions:
        raise UsageError(f"{positions} positions, allowed the {tables.classes.shape[2]} that there are classes for")
    steps, classes, offsets = (torch.from_numpy(one).to(device) for one in vars(tables).values())
    moved = (one.to(device) for one in vars(items).values())
    found: Tensor = call(DEQUANTIZE, *moved, steps, torch.zeros_like(steps), classes, offsets, positions, dtype, first)
    return found


def _reference(
    symbols: Tensor, starts: Tensor, kept: Tensor, rates: Tensor, steps: Tensor, means: Tensor, classes: Tensor,
    offsets: Tensor, positions: int, dtype: torch.dtype = torch.bfloat16, channels_first: bool = False,
) -> Tensor:  # fmt: skip
    values = coefficients_reference(Items(symbols, starts, kept, rates), steps, classes, offsets, positions)
    dense = (values + means[rates.long()][..., None]).to(dtype)
    return dense if channels_first else dense.transpose(1, 2).contiguous()


@triton.jit
def _dequantize_kernel(
    symbols, starts, kept, rates, steps, classes, offsets, base, dense, positions,
    COMPONENTS: tl.constexpr, REACH: tl.constexpr, BY_POSITION: tl.constexpr, CHANNELS_FIRST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    parts: tl.constexpr = (COMPONENTS + BLOCK_C - 1) // BLOCK_C
    item = tl.program_id(1)
    places = tl.program_id(0) // parts * BLOCK_P + tl.arange(0, BLOCK_P)
    rows = tl.program_id(0) % parts * BLOCK_C + tl.arange(0, BLOCK_C)
    inside, real = places < positions, rows < COMPONENTS
    count, rate, start = tl.load(kept + item), tl.load(rates + item), tl.load(starts + item)
    value = coefficients(
        symbols + start, steps, classes, offsets, rate * COMPONENTS, rows, places, rows < count, inside, positions,
        REACH, BY_POSITION,
    )  # fmt: skip
    value += tl.load(base + rate * COMPONENTS + rows, mask=real, other=0.0)[None, :]
    store_dense(dense, value, item, places, rows, inside, real, positions, COMPONENTS, CHANNELS_FIRST)


# For channels first and last: the longer side of a tile lies along the rows of the batch.
CONFIGS = (
    Config({"BLOCK_P": 128, "BLOCK_C": 16}, warps=4, stages=1),
    Config({"BLOCK_P": 32, "BLOCK_C": 64}, warps=4, stages=1),
)


def _config(first: bool) -> Config:
    return choose(CONFIGS, 0 if first else 1)


def _launch(
    symbols: Tensor, starts: Tensor, kept: Tensor, rates: Tensor, steps: Tensor, means: Tensor, classes: Tensor,
    offsets: Tensor, positions: int, dtype: torch.dtype = torch.bfloat16, channels_first: bool = False,
) -> Tensor:  # fmt: skip
    count, components = len(kept), steps.shape[1]
    shape = (count, components, positions) if channels_first else (count, positions, components)
    dense = torch.empty(shape, dtype=dtype, device=symbols.device)
    config = _config(channels_first)
    blocks = triton.cdiv(positions, config.constants["BLOCK_P"]) * triton.cdiv(components, config.constants["BLOCK_C"])
    if dense.numel():
        _dequantize_kernel[(blocks, count)](
            symbols.contiguous(), starts, kept, rates, steps.contiguous(), classes.contiguous(), offsets.contiguous(),
            means.contiguous(), dense, positions,
            COMPONENTS=components, REACH=offsets.shape[1] // 2, BY_POSITION=int(classes.shape[2] > 1),
            CHANNELS_FIRST=int(channels_first), **config.constants,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return dense


def _cost(
    symbols: Tensor, starts: Tensor, kept: Tensor, rates: Tensor, steps: Tensor, means: Tensor, classes: Tensor,
    offsets: Tensor, positions: int, dtype: torch.dtype = torch.bfloat16, channels_first: bool = False,
) -> Cost:  # fmt: skip
    read = sum(one.nbytes for one in (symbols, starts, kept, rates, steps, means, classes, offsets))
    written = len(kept) * steps.shape[1] * positions * dtype.itemsize
    return Cost(3.0 * symbols.numel(), float(read + written))


def _scene(*arguments: Any, **settings: Any) -> tuple[Tensor, ...]:
    """A scene of ragged decoding without its inverse."""
    *operands, _ = scene(*arguments, **settings)
    return tuple(operands)


def _examples() -> Sequence[Example]:
    plain, exact = torch.float32, {"tolerance": 2.0**-23, "why": "the mean is added without a rounding between"}
    rounded = {"tolerance": 2.0**-7, "why": "one unit in the last place, where a result lies at the middle of two"}
    scenes: list[tuple[str, tuple[Any, ...]]] = [
        ("odd", (*_scene([5, 2, 7], 7, 1, 11), 11, plain)),
        ("odd, channels first", (*_scene([3, 6], 6, 1, 9), 9, plain, True)),
        ("classes by position", (*_scene([5, 2, 7], 7, 1, 11, by_position=True), 11, plain)),
        ("more than a tile", (*_scene([70, 33], 70, 1, 131, by_position=True), 131, plain, True)),
        ("more than a tile, channels last", (*_scene([70, 33], 70, 1, 40), 40, plain)),
        ("an item without components", (*_scene([0, 4, 0], 4, 1, 5), 5, plain)),
        ("no items", (*_scene([], 4, 1, 5), 5, plain)),
        ("no positions", (*_scene([2, 1], 4, 1, 0), 0, plain)),
        ("one of each", (*_scene([1], 1, 1, 1), 1, plain)),
        ("the largest symbols of int16", (*_scene([4, 1], 5, 1, 7, 32767), 7, plain)),
    ]
    wide = Example("bf16", (*_scene([5, 2, 7], 7, 1, 11, by_position=True), 11), **rounded)  # type: ignore[arg-type]
    return [wide, *(Example(name, arguments, **exact) for name, arguments in scenes)]  # type: ignore[arg-type]


def _load(device: torch.device) -> tuple[Any, ...]:
    """256 devices, 14 x 14 positions of 96 components, of which 24 to 96 are sent, channels first."""
    return *_scene([24, 48, 64, 96] * 64, 96, 1, 196, 100, device, by_position=True), 196, torch.bfloat16, True


_POINTERS = {
    "starts": "*i32", "kept": "*i32", "rates": "*i32", "steps": "*fp32", "classes": "*u8", "offsets": "*fp32",
    "base": "*fp32", "positions": "i32",
}  # fmt: skip
_KINDS = tuple((symbols, dense) for dense in ("*fp32", "*bf16") for symbols in ("*i8", "*i16"))


def _entry(symbols: str, dense: str, components: int, by_position: bool, first: bool) -> Entry:
    config = _config(first)
    sizes = {
        "COMPONENTS": components, "REACH": BUCKETS, "BY_POSITION": int(by_position), "CHANNELS_FIRST": int(first),
    }  # fmt: skip
    made = Config({**config.constants, **sizes}, config.warps, config.stages)
    return Entry(_dequantize_kernel, {"symbols": symbols, "dense": dense, **_POINTERS}, (made,))


def _entries_for(codec: Codec) -> tuple[Entry, ...]:
    """In both widths of symbols and both types of result."""
    if not isinstance(codec, TransformCodec):
        return ()
    try:
        tables, first = rate_tables(codec), channels_first(codec)
    except UsageError as error:
        logger.warning("no kernel is compiled for this codec: %s", error.message)
        return ()
    return tuple(_entry(*kinds, tables.classes.shape[1], tables.per_position, first) for kinds in _KINDS)


DEQUANTIZE = Kernel(
    name="ragged-dequantize",
    formula="y = mean + step (q + offset), at each item's own rate",
    source="edgekit's transform codec, fused",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(*(_entry(*kinds, 96, True, True) for kinds in _KINDS), _entry("*i8", "*bf16", 96, False, False)),
    entries_for=_entries_for,
)

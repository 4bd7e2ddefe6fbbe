"""Attention over the blocks that a pattern names, and over the rest through one centroid for each block.

    x_ij = q_i k_j / sqrt(D)            z_ic = q_i m_c / sqrt(D) + log n_c
    o_i  = (sum of exp(x_ij) v_j + sum of exp(z_ic) u_c) / (sum of exp(x_ij) + sum of exp(z_ic))
           j in a block named for i     c a block not named for i

    q: [G, N, D], k: [G, M, D], v: [G, M, E], all float32 or all float16, D and E <= 128; o: [G, N, E] of v's type, 0 in
    rows that see nothing. G: batch times heads. m: [G, C, D] and u: [G, C, E], mean key and mean value of each of the
    n_c tokens of block c; they may be left out, and blocks not named then weigh nothing

The pattern comes in compressed rows (block_patterns.py), each block named once in a row. Causal means i >= j beside
it, and goes without centroids, which would look ahead.

One softmax over tokens and centroids, in one online pass (centroids in place of skipped blocks: SVG-EAR,
arXiv:2603.08982; blocks of any size made of clusters: Sparse VideoGen2, arXiv:2505.18875). By log n_c a centroid weighs
as much as its tokens would if they were all alike: where they are, nothing is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call
from edgekit.runtimes.kernels.block_patterns import Pattern, pack, power_of_two, selected, summarise
from edgekit.runtimes.kernels.choice import choose

WIDEST, LEAST = 128, 16


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, pattern: Pattern, causal: bool = False, compensate: bool = False
) -> Tensor:
    """[G, N, D], [G, M, D], [G, M, E] -> [G, N, E]. Raises UsageError for centroids in causal attention."""
    if causal and compensate:
        raise UsageError("centroids look ahead, which causal attention must not", hint="leave one of both out")
    means = [summarise(one, pattern.starts) for one in (keys, values)] if compensate else [None, None]
    layout = pattern.starts, pattern.offsets, pattern.columns
    found: Tensor = call(SPARSE_ATTENTION, queries, keys, values, *layout, *means, pattern.block, causal)
    return found


def _reference(
    queries: Tensor, keys: Tensor, values: Tensor, starts: Tensor, offsets: Tensor, columns: Tensor,
    mean_keys: Tensor | None, mean_values: Tensor | None, block: int, causal: bool,
) -> Tensor:  # fmt: skip
    i, j = (torch.arange(one.shape[1], device=keys.device) for one in (queries, keys))
    named = selected(starts, offsets, columns)[:, i // block]
    owner = torch.searchsorted(starts[:, 1:].contiguous(), j.int().expand(len(keys), -1).contiguous(), right=True)
    seen = named.gather(2, owner[:, None, :].expand(-1, len(i), -1)) & ((i[:, None] >= j) | (not causal))
    scores = (queries.float() @ keys.float().transpose(1, 2)).masked_fill(~seen, float("-inf")) / _root(queries)
    stored = values.float()
    if mean_keys is not None and mean_values is not None:
        z = queries.float() @ mean_keys.float().transpose(1, 2) / _root(queries)
        z = (z + starts.diff(dim=1).float().log()[:, None, :]).masked_fill(named, float("-inf"))
        scores, stored = torch.cat([scores, z], 2), torch.cat([stored, mean_values.float()], 1)
    top = pad(scores, (1, 0), value=-1e30).amax(2, keepdim=True)
    weights = torch.exp(scores - top)
    return (weights @ stored / weights.sum(2, keepdim=True).clamp(min=1e-30)).to(values.dtype)


def _root(queries: Tensor) -> float:
    return math.sqrt(queries.shape[2])


@triton.jit
def _absorb(x, v, top, weight, total):
    higher = tl.maximum(top, tl.max(x, 1))
    w, shrink = tl.exp(x - higher[:, None]), tl.exp(top - higher)
    total = tl.dot(w.to(v.dtype), v, total * shrink[:, None], input_precision="tf32x3")
    return higher, weight * shrink + tl.sum(w, 1), total


@triton.jit
def _sparse_attention_kernel(
    queries, keys, values, starts, offsets, columns, mean_keys, mean_values, named, out,
    length, tokens, blocks, size, scale,
    WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, CAUSAL: tl.constexpr, COMPENSATE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    start, group = tl.program_id(0) * BLOCK_Q, tl.program_id(1).to(tl.int64)
    row, rows = start // size, (length + size - 1) // size
    i, places = start + tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K)
    along, some = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    wide, held = (along < WIDTH)[None, :], (some < OUTPUTS)[None, :]
    at_key, at_value = places[:, None] * WIDTH + along[None, :], places[:, None] * OUTPUTS + some[None, :]
    mine = (i < length)[:, None]
    at_query = group * length * WIDTH + i[:, None] * WIDTH + along[None, :]
    q = tl.load(queries + at_query, mask=mine & wide, other=0.0)
    top = tl.full([BLOCK_Q], -1e30, tl.float32)
    weight, total = tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)
    edges, spans = starts + group * (blocks + 1), offsets + group * (rows + 1) + row
    for place in range(tl.load(spans), tl.load(spans + 1)):
        block = tl.load(columns + place)
        last = tl.load(edges + block + 1)
        if CAUSAL:
            last = tl.minimum(last, start + BLOCK_Q)
        for first in range(tl.load(edges + block), last, BLOCK_K):
            j, base = first + places, group * tokens + first
            there = (j < last)[:, None]
            k = tl.load(keys + base * WIDTH + at_key, mask=there & wide, other=0.0)
            v = tl.load(values + base * OUTPUTS + at_value, mask=there & held, other=0.0)
            x = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
            seen = (j < last)[None, :]
            if CAUSAL:
                seen = seen & (i[:, None] >= j[None, :])
            top, weight, total = _absorb(tl.where(seen, x, float("-inf")), v, top, weight, total)
    if COMPENSATE:
        for first in range(0, blocks, BLOCK_K):
            c, base = first + places, group * blocks + first
            there = (c < blocks)[:, None]
            m = tl.load(mean_keys + base * WIDTH + at_key, mask=there & wide, other=0.0)
            u = tl.load(mean_values + base * OUTPUTS + at_value, mask=there & held, other=0.0)
            z = tl.dot(q, tl.trans(m), input_precision="tf32x3") * scale
            count = tl.load(edges + c + 1, mask=c < blocks, other=0) - tl.load(edges + c, mask=c < blocks, other=0)
            skip = tl.load(named + (group * rows + row) * blocks + c, mask=c < blocks, other=1) == 0
            z += tl.log(tl.maximum(count, 1).to(tl.float32))[None, :]
            z = tl.where((skip & (count > 0))[None, :], z, float("-inf"))
            top, weight, total = _absorb(z, u, top, weight, total)
    mean = total / tl.where(weight > 0, weight, 1.0)[:, None]
    at_out = group * length * OUTPUTS + i[:, None] * OUTPUTS + some[None, :]
    tl.store(out + at_out, mean.to(out.dtype.element_ty), mask=mine & held)


CONFIGS = (
    Config({"BLOCK_Q": 64, "BLOCK_K": 32}, warps=4, stages=2),  # tokens of up to 64, rows of 64
    Config({"BLOCK_Q": 32, "BLOCK_K": 32}, warps=4, stages=2),  # rows of 32
    Config({"BLOCK_Q": 16, "BLOCK_K": 16}, warps=4, stages=2),
)


def _config(width: int, block: int) -> Config:
    return choose(CONFIGS, 0 if width <= 64 and block % 64 == 0 else 1 if block % 32 == 0 else 2)


def _launch(
    queries: Tensor, keys: Tensor, values: Tensor, starts: Tensor, offsets: Tensor, columns: Tensor,
    mean_keys: Tensor | None, mean_values: Tensor | None, block: int, causal: bool,
) -> Tensor:  # fmt: skip
    (groups, length, width), outputs = queries.shape, values.shape[2]
    if max(width, outputs) > WIDEST or block % LEAST or block < LEAST:
        raise UsageError(
            f"got {width}, {outputs} and blocks of {block}, allowed: {WIDEST}, {WIDEST}, multiples of {LEAST}"
        )
    config = _config(max(width, outputs), block)
    out = torch.empty(groups, length, outputs, dtype=values.dtype, device=values.device)
    compensate = mean_keys is not None and mean_values is not None
    named = selected(starts, offsets, columns).to(torch.uint8) if compensate else starts
    operands = (queries, keys, values, starts, offsets, columns)
    means = (mean_keys, mean_values) if compensate else (keys, values)
    if out.numel():
        _sparse_attention_kernel[(triton.cdiv(length, config.constants["BLOCK_Q"]), groups)](
            *(one.contiguous() for one in (*operands, *means, named) if one is not None),
            out,
            length,
            keys.shape[1],
            starts.shape[1] - 1,
            block,
            1 / _root(queries),
            WIDTH=width,
            OUTPUTS=outputs,
            CAUSAL=int(causal),
            COMPENSATE=int(compensate),
            BLOCK_D=_padded(width),
            BLOCK_E=_padded(outputs),
            **config.constants,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out


def _padded(width: int) -> int:
    return int(max(16, triton.next_power_of_2(width)))


def _cost(
    queries: Tensor, keys: Tensor, values: Tensor, starts: Tensor, offsets: Tensor, columns: Tensor,
    mean_keys: Tensor | None, mean_values: Tensor | None, block: int, causal: bool,
) -> Cost:  # fmt: skip
    """Of the named blocks at their mean size, and of every centroid; a block that causality cuts counts whole."""
    groups, length, width = queries.shape
    blocks, tokens, outputs = starts.shape[1] - 1, keys.shape[1], values.shape[2]
    pairs = len(columns) * block * tokens / max(blocks, 1)
    pairs += groups * length * blocks if mean_keys is not None else 0
    operands = (queries, keys, values, starts, offsets, columns, mean_keys, mean_values)
    moved = sum(one.nbytes for one in operands if one is not None) + groups * length * outputs * values.itemsize
    tiles = len(columns) * block / _config(max(width, outputs), block).constants["BLOCK_Q"]
    return Cost(2.0 * pairs * (width + outputs), float(moved), max(1.0, tiles / max(groups * blocks, 1)))


def _scene(
    groups: int, length: int, sizes: Sequence[int], width: int, outputs: int, causal: bool, compensate: bool,
    kind: torch.dtype = torch.float32, share: float = 0.5,
) -> tuple[Any, ...]:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tokens = (length, sum(sizes), sum(sizes))
    q, k, v = (
        torch.randn(groups, one, wide, generator=generator).to(kind)
        for one, wide in zip(tokens, (width, width, outputs), strict=True)
    )
    starts = torch.tensor([0, *sizes]).cumsum(0).int().repeat(groups, 1)
    chosen = torch.rand(groups, -(-length // 16), len(sizes), generator=generator) < share
    pattern = pack(chosen, starts, 16)
    means = [summarise(one, starts) for one in (k, v)] if compensate else [None, None]
    return q, k, v, starts, pattern.offsets, pattern.columns, *means, 16, causal


def _half_tolerance(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> float:
    """Weights are rounded to float16 by 2^-11 of themselves, the result on both sides by 2^-11 of a value."""
    positive = (q, k, v.float().abs(), *others[:4], others[4].abs(), *others[5:])
    sizes = _reference(*positive)
    return 2.0**-11 * float(sizes.max() / _reference(q, k, v, *others).float().abs().max()) + 2.0**-10


def _examples() -> Sequence[Example]:
    odd, even = (37, (5, 0, 40, 1), 7, 5), (20, (9, 17, 8), 16, 16)
    half = _scene(1, *even, False, True, torch.float16)
    q, k, v, *layout = _scene(1, *even, False, True)
    power = power_of_two(2, 70, 16, recent=1)
    long = _scene(2, 70, (70,), 7, 9, True, False)
    steep = 900 * float((q @ k.transpose(1, 2)).abs().max()) / 4
    return [
        Example("odd, with centroids", _scene(2, *odd, False, True)),
        Example("odd, without", _scene(2, *odd, False, False)),
        Example("powers of two, causal", (*long[:3], power.starts, power.offsets, power.columns, *long[6:])),
        Example("every block, wide", _scene(1, 40, (20, 36), 70, 40, False, True, share=1.0)),
        Example("no block, more centroids than a tile", _scene(1, 20, (1, 2) * 20, 5, 3, False, True, share=0.0)),
        Example("no block and no centroid", _scene(1, 20, (9, 8), 5, 3, False, False, share=0.0), 0.0, "zeros"),
        Example("no keys", _scene(2, 20, (0,), 5, 3, False, True)),
        Example("no queries", _scene(2, 0, (9, 3), 5, 3, False, True)),
        Example("no groups", _scene(0, 20, (9, 3), 5, 3, False, True)),
        Example("float16", half, _half_tolerance(*half), "weights and results are rounded to float16"),
        Example("large scores", (30 * q, 30 * k, v, *layout), steep * 2.0**-22, "a score keeps 2^-24, times four"),
    ]


def _load(device: torch.device) -> tuple[Any, ...]:
    """2 texts of 16384 tokens, 16 heads of 64, causal, blocks at powers of two."""
    q, k, v = (torch.randn(32, 16384, 64, device=device, dtype=torch.float16) for _ in range(3))
    pattern = power_of_two(32, 16384, 64, device=device)
    return q, k, v, pattern.starts, pattern.offsets, pattern.columns, None, None, 64, True


_WIDTHS = ("WIDTH", "OUTPUTS", "BLOCK_D", "BLOCK_E")
_MODES = ({"CAUSAL": 1, "COMPENSATE": 0}, {"CAUSAL": 0, "COMPENSATE": 1})

SPARSE_ATTENTION = Kernel(
    name="sparse-attention",
    formula="o_i = softmax over named blocks' x_ij and other blocks' z_ic + log n_c, of v_j and u_c",
    source="SVG-EAR, arXiv:2603.08982; Sparse VideoGen2, arXiv:2505.18875",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(
        Entry(
            _sparse_attention_kernel,
            {
                **dict.fromkeys(("queries", "keys", "values", "mean_keys", "mean_values", "out"), "*fp16"),
                **dict.fromkeys(("starts", "offsets", "columns"), "*i32"),
                "named": "*u8",
                **dict.fromkeys(("length", "tokens", "blocks", "size"), "i32"),
                "scale": "fp32",
            },
            tuple(
                Config({**one.constants, **mode, **dict.fromkeys(_WIDTHS, width)}, one.warps, one.stages)
                for one, width in zip(CONFIGS, (64, 128, 128), strict=True)
                for mode in _MODES
            ),
        ),
    ),
)

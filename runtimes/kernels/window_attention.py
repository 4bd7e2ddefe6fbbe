"""Causal attention, exact inside of a window and by a linear state before it, under one normalisation.

    x_ij = q_i k_j / sqrt(D)    y_ij = f_i g_j / sqrt(F)
    w_ij = exp(x_ij)               where i - W < j <= i
         = 1 + y_ij + y_ij^2 / 2   where j <= i - W
    o_i  = sum over j of w_ij v_j / sum over j of w_ij

    q, k: [B, H, T, D], D <= 128; f, g: [B, H, T, F], F <= 16, a narrow view of them for the far past (q and k
    themselves, if as narrow); v: [B, H, T, E]; all float32 or all float16; o: [B, H, T, E] of v's type; W >= 1

1 + y + y^2 / 2 is the second-order series of exp(y), never below 1/2, and a product of 1 + F + F^2 features of f with
those of g: the far past is a state [1 + F + F^2, E] and a sum of its features, whatever its length. Both parts count in
one sum of weights, so that a window that covers the text leaves full attention. (BASED, arXiv:2402.18668, which has the
window and the state in layers of their own; the common normalisation is edgekit's.)

Weights are kept relative to exp(m), with m the largest x so far, and at least 0 where there is a far past: it alone
weighs 1/2, so that nothing that exp(-m) or exp(x - m) flushes to zero could be seen beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call
from edgekit.runtimes.kernels.choice import choose

WIDEST, NARROWEST = 128, 16


def attend(
    queries: Tensor, keys: Tensor, narrow_queries: Tensor, narrow_keys: Tensor, values: Tensor, window: int
) -> Tensor:
    """[B, H, T, D] twice, [B, H, T, F] twice, [B, H, T, E], W -> [B, H, T, E]. Raises UsageError for W < 1."""
    if window < 1:
        raise UsageError(f"a window holds at least the token itself, got {window}")
    found: Tensor = call(WINDOW_ATTENTION, queries, keys, narrow_queries, narrow_keys, values, window)
    return found


def _weights(queries: Tensor, keys: Tensor, narrow_queries: Tensor, narrow_keys: Tensor, window: int) -> Tensor:
    """float32 [B, H, T, T], relative to exp of the largest x, and to no less than 1 where there is a far past."""
    places = torch.arange(queries.shape[2], device=queries.device)
    ago = places[:, None] - places[None, :]
    x = queries.float() @ keys.float().transpose(2, 3) / math.sqrt(queries.shape[3])
    y = narrow_queries.float() @ narrow_keys.float().transpose(2, 3) / math.sqrt(narrow_queries.shape[3])
    x = x.masked_fill((ago < 0) | (ago >= window), float("-inf"))
    floor = torch.where(places >= window, 0.0, float("-inf"))
    top = torch.maximum(x.amax(3), floor) if len(places) else x.sum(3)
    far = torch.where(ago >= window, 1 + y + y.square() / 2, 0.0)
    return torch.exp(x - top[..., None]) + torch.where(far > 0, far * torch.exp(-top[..., None]), 0.0)


def _reference(
    queries: Tensor, keys: Tensor, narrow_queries: Tensor, narrow_keys: Tensor, values: Tensor, window: int
) -> Tensor:
    weights = _weights(queries, keys, narrow_queries, narrow_keys, window)
    return (weights @ values.float() / weights.sum(3, keepdim=True)).to(values.dtype)


@triton.jit
def _window_attention_kernel(
    queries, keys, narrow_queries, narrow_keys, values, out, length, outputs, window, scale, narrow_scale,
    WIDTH: tl.constexpr, NARROW: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_E: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    PRECISION: tl.constexpr = "tf32x3" if EXACT else "tf32"
    row = tl.program_id(1).to(tl.int64) * length
    places, narrow = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_F)
    along, columns = tl.arange(0, BLOCK_D), tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    wide, slim, some = (along < WIDTH)[None, :], (narrow < NARROW)[None, :], (columns < outputs)[None, :]
    at_wide = places[:, None] * WIDTH + along[None, :]
    at_narrow = places[:, None] * NARROW + narrow[None, :]
    at_out = places[:, None] * outputs + columns[None, :]
    sums = tl.zeros([BLOCK_E], tl.float32)
    lines = tl.zeros([BLOCK_F, BLOCK_E], tl.float32)
    squares = tl.zeros([BLOCK_F * BLOCK_F, BLOCK_E], tl.float32)
    line_sum, square_sum = tl.zeros([BLOCK_F], tl.float32), tl.zeros([BLOCK_F * BLOCK_F], tl.float32)
    for first in range(0, length, BLOCK_T):
        # Tiles of keys that are out of the window of every query here; each round brings at most one more.
        left = tl.maximum(first - window + 1, 0) // BLOCK_T
        leaving, gone = row + tl.maximum(left - 1, 0) * BLOCK_T, places[:, None] < left * BLOCK_T
        g = tl.load(narrow_keys + leaving * NARROW + at_narrow, mask=gone & slim, other=0.0).to(tl.float32)
        v = tl.load(values + leaving * outputs + at_out, mask=gone & some, other=0.0).to(tl.float32)
        pairs = tl.reshape(g[:, :, None] * g[:, None, :], [BLOCK_T, BLOCK_F * BLOCK_F])
        sums += tl.sum(v, 0)
        lines = tl.dot(tl.trans(g), v, lines, input_precision=PRECISION)
        squares = tl.dot(tl.trans(pairs), v, squares, input_precision=PRECISION)
        line_sum += tl.sum(g, 0)
        square_sum += tl.sum(pairs, 0)

        i = first + places
        inside = (i < length)[:, None]
        q = tl.load(queries + (row + first) * WIDTH + at_wide, mask=inside & wide, other=0.0)
        narrow_q = tl.load(narrow_queries + (row + first) * NARROW + at_narrow, mask=inside & slim, other=0.0)
        f = narrow_q.to(tl.float32)
        pairs = tl.reshape(f[:, :, None] * f[:, None, :], [BLOCK_T, BLOCK_F * BLOCK_F])
        half = 0.5 * narrow_scale * narrow_scale
        total = tl.dot(pairs, squares, input_precision=PRECISION) * half
        total += tl.dot(f, lines, input_precision=PRECISION) * narrow_scale + sums[None, :]
        weight = left * BLOCK_T + narrow_scale * tl.sum(f * line_sum[None, :], 1)
        weight += half * tl.sum(pairs * square_sum[None, :], 1)
        top = tl.where(i >= window, 0.0, -1e30)
        for start in range(left * BLOCK_T, first + 1, BLOCK_T):
            ago = i[:, None] - (start + places)[None, :]
            there = (start + places < length)[:, None]
            k = tl.load(keys + (row + start) * WIDTH + at_wide, mask=there & wide, other=0.0)
            narrow_k = tl.load(narrow_keys + (row + start) * NARROW + at_narrow, mask=there & slim, other=0.0)
            v = tl.load(values + (row + start) * outputs + at_out, mask=there & some, other=0.0).to(tl.float32)
            x = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
            y = tl.dot(narrow_q, tl.trans(narrow_k), input_precision="tf32x3") * narrow_scale
            x = tl.where((ago >= 0) & (ago < window), x, float("-inf"))
            higher = tl.maximum(top, tl.max(x, 1))
            near = tl.exp(x - higher[:, None])
            # Where there is a far past `higher` is 0 or more.
            far = (1.0 + y + 0.5 * y * y) * tl.exp(-tl.maximum(higher, 0.0))[:, None]
            w = tl.where(ago >= window, far, near)
            shrink = tl.exp(top - higher)
            weight = weight * shrink + tl.sum(w, 1)
            total = tl.dot(w, v, total * shrink[:, None], input_precision=PRECISION)
            top = higher
        mean = (total / weight[:, None]).to(out.dtype.element_ty)
        tl.store(out + (row + first) * outputs + at_out, mean, mask=inside & some)


CONFIGS = (
    Config({"BLOCK_T": 16, "BLOCK_D": 64, "BLOCK_F": 16, "BLOCK_E": 32}, warps=8, stages=2),
    Config({"BLOCK_T": 16, "BLOCK_D": 128, "BLOCK_F": 16, "BLOCK_E": 32}, warps=8, stages=2),
)


def _launch(
    queries: Tensor, keys: Tensor, narrow_queries: Tensor, narrow_keys: Tensor, values: Tensor, window: int
) -> Tensor:
    (batch, heads, length, width), narrow, outputs = queries.shape, narrow_queries.shape[3], values.shape[3]
    if width > WIDEST or narrow > NARROWEST:
        raise UsageError(f"keys are {width} and {narrow} wide, allowed: {WIDEST} and {NARROWEST}")
    out = torch.empty_like(values, memory_format=torch.contiguous_format)
    config = choose(CONFIGS, 0 if width <= 64 else 1)
    if out.numel():
        _window_attention_kernel[(triton.cdiv(outputs, config.constants["BLOCK_E"]), batch * heads)](
            queries.contiguous(),
            keys.contiguous(),
            narrow_queries.contiguous(),
            narrow_keys.contiguous(),
            values.contiguous(),
            out,
            length,
            outputs,
            min(window, length),
            1 / math.sqrt(width),
            1 / math.sqrt(narrow),
            WIDTH=width,
            NARROW=narrow,
            EXACT=int(queries.dtype == torch.float32),
            **config.constants,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out


def _cost(q: Tensor, k: Tensor, f: Tensor, g: Tensor, values: Tensor, window: int) -> Cost:
    """Each token meets its window, adds its features to the state and asks it. Each slice of values and each tile of
    queries in reach crosses the keys once more."""
    (batch, heads, length, width), narrow, outputs = q.shape, f.shape[3], values.shape[3]
    reach, slices = min(window, length), triton.cdiv(outputs, CONFIGS[0].constants["BLOCK_E"])
    flops = 2 * reach * (width + outputs) + 4 * (1 + narrow + narrow**2) * outputs
    moved = sum(one.nbytes for one in (q, k, f, g, values, values))
    passes = slices * (reach / CONFIGS[0].constants["BLOCK_T"] + 1)
    return Cost(float(batch * heads * length * flops), float(moved), max(passes, 1.0))


def _scene(
    sizes: tuple[int, int, int], width: int, narrow: int, outputs: int, window: int, kind: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    widths = (width, width, narrow, narrow, outputs)
    return *(torch.randn(*sizes, one, generator=generator).to(kind) for one in widths), window


def _half_tolerance(q: Tensor, k: Tensor, f: Tensor, g: Tensor, values: Tensor, window: int) -> float:
    """Products of two features and their state are each rounded to tf32 by 2^-11, and so are weights: a sum is off by
    2^-10 of its terms' sizes. Both results are then rounded to float16, each by 2^-11 of a value."""
    largest = _weights(q, k, f.abs(), g.abs(), window) @ values.float().abs()
    weight = _weights(q, k, f, g, window).sum(3, keepdim=True)
    out = _reference(q, k, f, g, values, window).float()
    return 2.0**-10 * float((largest / weight).max() / out.abs().max()) + 2.0**-10


def _examples() -> Sequence[Example]:
    q, k, f, g, v, window = _scene((1, 2, 21), 6, 3, 5, 4)
    half = _scene((1, 1, 40), 16, 8, 16, 9, torch.float16)
    steep = 30 * q, 30 * k, f, g, v, window
    largest = 900 * float((q @ k.transpose(2, 3)).abs().max()) / math.sqrt(6)
    return [
        Example("odd", _scene((2, 3, 37), 7, 5, 9, 6)),
        Example("more than a tile each way", _scene((1, 1, 50), 70, 16, 40, 20)),
        Example("a window of one token", _scene((1, 2, 35), 5, 4, 3, 1)),
        Example("a window of a tile and one more", _scene((1, 1, 50), 5, 4, 3, 17)),
        Example("a window that covers everything", _scene((1, 2, 21), 5, 4, 3, 1 << 40)),
        Example("float16", half, _half_tolerance(*half), "operands are rounded to tf32, results to float16"),
        Example("no tokens", _scene((2, 2, 0), 5, 4, 3, 4)),
        Example("no texts", _scene((0, 2, 7), 5, 4, 3, 4)),
        Example("large scores", steep, largest * 2.0**-22, "a score keeps 2^-24 of itself, times four for its sum"),
        Example("scores far below zero", (100 + q, -100 - k, f, g, v, 1 << 20), 25e3 * 2.0**-22, "as for large scores"),
        Example("a far past that outweighs the window", (q, k, 100 * f, 100 * g, v, window)),
    ]


def _load(device: torch.device) -> tuple[Any, ...]:
    """8 texts of 4096 tokens, 16 heads of 64, features of 16, a window of 64 (BASED's sizes)."""
    widths = (64, 64, 16, 16, 64)
    return *(torch.randn(8, 16, 4096, one, device=device, dtype=torch.float16) for one in widths), 64


WINDOW_ATTENTION = Kernel(
    name="window-attention",
    formula="o_i = sum of w_ij v_j / sum of w_ij, w = exp(x) in the window, 1 + y + y^2/2 before it",
    source="BASED, arXiv:2402.18668",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(
        Entry(
            _window_attention_kernel,
            {
                **dict.fromkeys(("queries", "keys", "narrow_queries", "narrow_keys", "values", "out"), "*fp16"),
                **dict.fromkeys(("length", "outputs", "window"), "i32"),
                **dict.fromkeys(("scale", "narrow_scale"), "fp32"),
            },
            tuple(
                Config(
                    {**one.constants, "WIDTH": one.constants["BLOCK_D"], "NARROW": 16, "EXACT": 0},
                    one.warps,
                    one.stages,
                )
                for one in CONFIGS
            ),
        ),
    ),
)

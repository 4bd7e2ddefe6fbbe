"""Causal linear attention whose past fades, by tiles: masked products inside of a tile, a running state before it.

    S_i = d S_{i-1} + k_i v_i'      o_i = q_i S_i
        = d^{i+1} q_i S_{-1} + sum over j <= i of d^{i-j} (q_i k_j) v_j

    q, k: [B, H, T, D] and v: [B, H, T, E], all float32 or all float16; d: float32 [H] in (0, 1], where 1
    is linear attention without decay; S: float32 [B, H, D, E]; o: [B, H, T, E] of v's type

A text may come in parts: the state after one is the state before the next. Every power of d has an exponent of 0 or
more and none is divided by another, so that a fast decay fades to zero and never overflows. The state is summed in
float32. As an operand it, like decayed scores and keys, is rounded to tf32 beside float16 inputs, which are as coarse,
and split in two beside float32 ones. (Lightning Attention-2, arXiv:2401.04658)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call
from edgekit.runtimes.kernels.choice import choose


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[B, H, T, D], [B, H, T, D], [B, H, T, E], float32 [H], float32 [B, H, D, E] -> o and the state after the last.

    No scale is applied. Raises UsageError for a decay outside of (0, 1] and for D above 128.
    """
    if not bool(((decay > 0) & (decay <= 1)).all()):
        raise UsageError(f"decay is in (0, 1], got {decay.tolist()}")
    if state is None:
        batch, heads, _, width = keys.shape
        state = torch.zeros(batch, heads, width, values.shape[3], device=keys.device)
    found: tuple[Tensor, Tensor] = call(LINEAR_ATTENTION, queries, keys, values, decay, state)
    return found


def _reference(queries: Tensor, keys: Tensor, values: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = queries.float(), keys.float(), values.float()
    length = q.shape[2]
    places = torch.arange(length, device=q.device)
    ago = places[:, None] - places[None, :]
    fading = torch.where(ago >= 0, decay[:, None, None] ** ago.clamp(min=0), 0.0)
    since = decay[:, None] ** (places + 1)
    out = (q @ k.transpose(2, 3) * fading) @ v + since[:, :, None] * (q @ state)
    left = decay[:, None] ** (length - 1 - places)
    after = decay[:, None, None] ** length * state + (left[:, :, None] * k).transpose(2, 3) @ v
    return out.to(values.dtype), after


@triton.jit
def _linear_attention_kernel(
    queries, keys, values, decay, state, out, after, heads, length, outputs,
    WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    PRECISION: tl.constexpr = "tf32x3" if EXACT else "tf32"
    row = tl.program_id(1).to(tl.int64)
    rate = tl.log2(tl.load(decay + row % heads))
    columns = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    along, places = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_T)
    wide, some = along < WIDTH, columns < outputs
    cells = row * WIDTH * outputs + along[:, None] * outputs + columns[None, :]
    running = tl.load(state + cells, mask=wide[:, None] & some[None, :], other=0.0)
    narrow, there = places[:, None] * WIDTH + along[None, :], places[:, None] * outputs + columns[None, :]
    ago = places[:, None] - places[None, :]
    fading = tl.where(ago >= 0, tl.exp2(rate * tl.maximum(ago, 0).to(tl.float32)), 0.0)
    since = tl.exp2(rate * (places + 1).to(tl.float32))
    for first in range(0, length, BLOCK_T):
        inside, start = first + places < length, row * length + first
        whole = inside[:, None] & wide[None, :]
        q = tl.load(queries + start * WIDTH + narrow, mask=whole, other=0.0)
        k = tl.load(keys + start * WIDTH + narrow, mask=whole, other=0.0)
        whole = inside[:, None] & some[None, :]
        v = tl.load(values + start * outputs + there, mask=whole, other=0.0).to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * fading
        past = tl.dot(q.to(tl.float32), running, input_precision=PRECISION) * since[:, None]
        total = tl.dot(scores, v, past, input_precision=PRECISION)
        tl.store(out + start * outputs + there, total.to(out.dtype.element_ty), mask=whole)
        last = tl.minimum(length - first, BLOCK_T)
        left = tl.exp2(rate * tl.maximum(last - 1 - places, 0).to(tl.float32))
        faded = tl.trans(k.to(tl.float32) * left[:, None])
        running = tl.dot(faded, v, running * tl.exp2(rate * last.to(tl.float32)), input_precision=PRECISION)
    tl.store(after + cells, running, mask=wide[:, None] & some[None, :])


CONFIGS = (
    Config({"BLOCK_T": 32, "BLOCK_D": 64, "BLOCK_E": 32}, warps=8, stages=2),
    Config({"BLOCK_T": 16, "BLOCK_D": 128, "BLOCK_E": 32}, warps=8, stages=2),
)
WIDEST = 128


def _launch(queries: Tensor, keys: Tensor, values: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    (batch, heads, length, width), outputs = queries.shape, values.shape[3]
    if width > WIDEST:
        raise UsageError(f"keys are {width} wide, allowed: {WIDEST}")
    out, after = (torch.empty_like(one, memory_format=torch.contiguous_format) for one in (values, state))
    config = choose(CONFIGS, 0 if width <= 64 else 1)
    if state.numel():
        _linear_attention_kernel[(triton.cdiv(outputs, config.constants["BLOCK_E"]), batch * heads)](
            queries.contiguous(),
            keys.contiguous(),
            values.contiguous(),
            decay.float().contiguous(),
            state.contiguous(),
            out,
            after,
            heads,
            length,
            outputs,
            WIDTH=width,
            EXACT=int(queries.dtype == torch.float32),
            **config.constants,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out, after


def _cost(queries: Tensor, keys: Tensor, values: Tensor, decay: Tensor, state: Tensor) -> Cost:
    """Of the formula with a state: 2 products of D x E for each token. Tiles add 2 (D + E) BLOCK_T to them. Each slice
    of BLOCK_E values crosses queries and keys once more."""
    (batch, heads, length, width), outputs = queries.shape, values.shape[3]
    moved = queries.nbytes + keys.nbytes + 2 * values.nbytes + decay.nbytes + 2 * state.nbytes
    slices = triton.cdiv(outputs, CONFIGS[0].constants["BLOCK_E"])
    return Cost(4.0 * batch * heads * length * width * outputs, float(moved), float(max(slices, 1)))


def _scene(
    batch: int, decay: Sequence[float], length: int, width: int, outputs: int, kind: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(batch, len(decay), length, width, generator=generator).to(kind) for _ in range(2))
    values = torch.randn(batch, len(decay), length, outputs, generator=generator).to(kind)
    state = torch.randn(batch, len(decay), width, outputs, generator=generator)
    return queries, keys, values, torch.tensor(decay), state


def _half_tolerance(queries: Tensor, keys: Tensor, values: Tensor, decay: Tensor, state: Tensor) -> float:
    """Each product has one operand rounded to tf32, by 2^-11, so that a sum is off by 2^-11 of its terms' sizes; both
    results are then rounded to float16, each by 2^-11 of a value."""
    arguments = queries, keys, values, decay, state
    sizes = _reference(*(one.float().abs() for one in arguments))
    worst = max(
        float(size.max() / one.float().abs().max()) for size, one in zip(sizes, _reference(*arguments), strict=True)
    )
    return 2.0**-11 * worst + 2.0**-10


def _examples() -> Sequence[Example]:
    half = _scene(1, (0.9, 1.0), 35, 16, 16, torch.float16)
    large = _scene(1, (0.9,), 5, 6, 7)
    return [
        Example("odd", _scene(2, (0.9, 0.5, 0.99), 37, 7, 5)),
        Example("more than a tile each way", _scene(1, (0.95,), 70, 70, 40)),
        Example("no decay", _scene(1, (1.0,), 67, 9, 4)),
        Example("a decay that fades within a tile", _scene(1, (1e-30, 1e-3), 45, 5, 3)),
        Example("a decay next to none", _scene(1, (1 - 2.0**-24,), 45, 5, 3)),
        Example("float16", half, _half_tolerance(*half), "operands are rounded to tf32, results to float16"),
        Example("no tokens", _scene(2, (0.9, 1.0), 0, 5, 3)),
        Example("no texts", _scene(0, (0.9,), 4, 5, 3)),
        Example("one token", _scene(1, (0.5,), 1, 1, 1)),
        Example("large values", tuple(1e8 * one for one in large[:3]) + large[3:]),
    ]


def _load(device: torch.device) -> tuple[Any, ...]:
    """8 texts of 4096 tokens, 16 heads of 64, each of which forgets at a rate of its own."""
    queries, keys, values = (torch.randn(8, 16, 4096, 64, device=device, dtype=torch.float16) for _ in range(3))
    decay = torch.exp(-(2.0 ** -torch.arange(1, 17, device=device) / 2))
    return queries, keys, values, decay, torch.zeros(8, 16, 64, 64, device=device)


LINEAR_ATTENTION = Kernel(
    name="linear-attention",
    formula="o_i = d^(i+1) q_i S + sum over j <= i of d^(i-j) (q_i k_j) v_j",
    source="Lightning Attention-2, arXiv:2401.04658",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(
        Entry(
            _linear_attention_kernel,
            {
                "queries": "*fp16",
                "keys": "*fp16",
                "values": "*fp16",
                "decay": "*fp32",
                "state": "*fp32",
                "out": "*fp16",
                "after": "*fp32",
                "heads": "i32",
                "length": "i32",
                "outputs": "i32",
            },
            tuple(
                Config({**one.constants, "WIDTH": one.constants["BLOCK_D"], "EXACT": 0}, one.warps, one.stages)
                for one in CONFIGS
            ),
        ),
    ),
)

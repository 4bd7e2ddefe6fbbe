"""Attention of one query per sequence against a cache of int8 keys and values, split over the keys where it is long.

    s_j = c_j (q k_j) / sqrt(D)      o = sum_j exp(s_j) d_j v_j / sum_j exp(s_j)      lse = ln sum_j exp(s_j)

q: [B, H, D] in one of float32, bf16, fp16; k, v: int8 [keys, K, D], sequences back to back with starts: int32 [B + 1];
c, d: float32 [keys, K], the step of a token and head; o as q, lse: float32 [B, H]. H is a multiple of K: query head h
reads head h // (H / K) (grouped queries, arXiv:2305.13245). A sequence without keys has o = 0 and lse = -inf. Steps per
token fit a cache that grows by a token (keys by channel are finer: KIVI, arXiv:2402.02750).

A program owns a sequence, a head of the cache with all its queries and a split of SPLIT keys: the cache is read once,
and converted in registers; sums are float32. Weights of a group meet their values as two bf16 halves, exact to 2^-17,
or in three parts of tf32 where the queries are float32. The splits' results are merged by merge_shards (after
FlashInfer, arXiv:2501.01005). `longest` foretells the length of the longest sequence, so that it need not come to the
host: the last split takes whatever is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call
from edgekit.runtimes.kernels.choice import choose
from edgekit.runtimes.kernels.merge_shards import MERGE
from edgekit.runtimes.kernels.online_softmax import LN_2, LOG2_E, LOWEST, absorb
from edgekit.runtimes.kernels.tiles import all_aligned, at, multiply, narrow, widen


def attend(
    queries: Tensor, keys: Tensor, key_steps: Tensor, values: Tensor, value_steps: Tensor, starts: Tensor, longest: int
) -> tuple[Tensor, Tensor]:
    """Shapes as above; `longest` decides the splits, not the result. Raises UsageError where heads do not divide."""
    expect_groups(queries.shape[1], keys.shape[1])
    result, logsum = call(DECODE, queries, keys, key_steps, values, value_steps, starts, longest)
    return result, logsum


def expect_groups(heads: int, cached: int) -> None:
    """Raises UsageError where `heads` of queries are not a multiple of those of the cache."""
    if not cached or heads % cached:
        raise UsageError(f"{heads} heads of queries for {cached} of the cache, allowed a multiple")


def dense_reference(queries: Tensor, keys: Tensor, values: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values as float32 [keys, K, D]. Everything is float32; the result is rounded once."""
    group = queries.shape[1] // max(keys.shape[1], 1)
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    result = torch.zeros_like(queries)
    logsum = torch.full(queries.shape[:2], -math.inf, device=queries.device)
    ends = starts.tolist()
    for row, (first, last) in enumerate(pairwise(ends)):
        if first < last:
            scores = torch.einsum("hd,khd->hk", queries[row].float(), keys[first:last]) / math.sqrt(queries.shape[2])
            result[row] = torch.einsum("hk,khd->hd", scores.softmax(1), values[first:last]).to(queries.dtype)
            logsum[row] = scores.logsumexp(1)
    return result, logsum


def _reference(
    queries: Tensor, keys: Tensor, key_steps: Tensor, values: Tensor, value_steps: Tensor, starts: Tensor, longest: int
) -> tuple[Tensor, Tensor]:
    return dense_reference(queries, keys * key_steps[..., None], values * value_steps[..., None], starts)


@triton.jit
def stretch(starts, sequence, SPLIT: tl.constexpr):
    """First and last + 1 of the keys of this program, whose split is program_id(1)."""
    split = tl.program_id(1)
    beginning, ending = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    first = tl.minimum(beginning + split * SPLIT, ending)
    last = tl.where(split == tl.num_programs(1) - 1, ending, tl.minimum(first + SPLIT, ending))
    return first, last


@triton.jit
def finish(results, logsums, product, total, reference, along, deep, WIDTH: tl.constexpr, GROUP: tl.constexpr):
    """Stores product [M, D] / total [M] of this program's split and its GROUP rows; column i lies at along[0, i]."""
    member = tl.arange(0, product.shape[0])
    row = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * GROUP + member
    inside = member < GROUP
    divisor = tl.where(total > 0, total, 1.0)
    result = narrow(product / divisor[:, None], results.dtype.element_ty)
    tl.store(results + row[:, None] * WIDTH + along, result, mask=inside[:, None] & deep)
    tl.store(logsums + row, tl.where(total > 0, (reference + tl.log2(divisor)) * LN_2, float("-inf")), mask=inside)


@triton.jit
def _weigh(weights, values, kind: tl.constexpr, product):
    """weights float32 [M, N] times values int8 [N, D], added to `product`; `kind`: the type of the queries."""
    if kind == tl.float32:
        return multiply(weights, values.to(tl.float32), product)
    exact = narrow(values.to(tl.float32), tl.bfloat16)
    upper = narrow(weights, tl.bfloat16)
    product = multiply(upper, exact, product)
    return multiply(narrow(weights - widen(upper), tl.bfloat16), exact, product)


@triton.jit
def _decode_attention_kernel(
    queries, keys, key_steps, values, value_steps, starts, results, logsums, heads, scale,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, ALIGNED: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first, last = stretch(starts, sequence, SPLIT)
    member, along = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)[None, :]
    deep = along < WIDTH
    row = tl.program_id(0) * GROUP + member[:, None]
    q = tl.load(queries + row * WIDTH + along, mask=(member < GROUP)[:, None] & deep, other=0.0)
    product = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    reference = tl.full([BLOCK_M], LOWEST, tl.float32)
    for start in range(first, last, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        inside = rows < last
        token = rows.to(tl.int64) * heads + head
        places, present = token[:, None] * WIDTH + along, inside[:, None] & deep
        k = tl.load(at(keys, places, ALIGNED), mask=present, other=0).to(tl.float32)
        step = tl.load(key_steps + token, mask=inside, other=0.0)
        if GROUP == 1:  # one row is no tile for the tensor cores
            scores = (tl.sum(q.to(tl.float32) * scale * k, 1) * step)[None, :]
        else:  # the queries' own type holds int8 exactly
            dots = multiply(q, tl.trans(narrow(k, q.dtype)), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
            scores = dots * scale * step[None, :]
        scores = tl.where(inside[None, :], scores, float("-inf"))
        weights, product, total, reference = absorb(scores, product, total, reference, 0, 0)
        weights *= tl.load(value_steps + token, mask=inside, other=0.0)[None, :]
        v = tl.load(at(values, places, ALIGNED), mask=present, other=0)
        if GROUP == 1:
            product += tl.sum(tl.trans(weights) * v.to(tl.float32), 0)[None, :]
        else:
            product = _weigh(weights, v, q.dtype, product)
    finish(results, logsums, product, total, reference, along, deep, WIDTH, GROUP)


# For one query of each head of the cache, and for groups of them.
CONFIGS = (
    Config({"SPLIT": 512, "BLOCK_N": 32}, warps=4, stages=3),
    Config({"SPLIT": 512, "BLOCK_N": 64}, warps=4, stages=3),
)
LEAST_TILE = 16  # rows and columns of a product on tensor cores


def _constants(width: int, group: int, aligned: bool) -> dict[str, int]:
    rows = 1 if group == 1 else max(LEAST_TILE, triton.next_power_of_2(group))
    deep = max(LEAST_TILE, triton.next_power_of_2(width))
    return {"WIDTH": width, "GROUP": group, "ALIGNED": int(aligned), "BLOCK_M": rows, "BLOCK_D": deep}


def split_and_merge(
    queries: Tensor, longest: int, split: int, start: Callable[[int, Tensor, Tensor], None]
) -> tuple[Tensor, Tensor]:
    """`start` launches so many splits, which fill results [S, B, H, D] and their logarithms [S, B, H]. More than one
    split leave theirs in float32, so that the result is rounded once."""
    count, heads, width = queries.shape
    splits = max(1, triton.cdiv(longest, split))
    kind = queries.dtype if splits == 1 else torch.float32
    results = torch.empty(splits, count, heads, width, dtype=kind, device=queries.device)
    logsums = torch.empty(splits, count, heads, device=queries.device)
    if results.numel():
        start(splits, results, logsums)
    if splits == 1:
        return results[0], logsums[0]
    result, logsum = MERGE.launch(results, logsums)
    return result.to(queries.dtype), logsum


def _launch(
    queries: Tensor, keys: Tensor, key_steps: Tensor, values: Tensor, value_steps: Tensor, starts: Tensor, longest: int
) -> tuple[Tensor, Tensor]:
    (count, heads, width), cached = queries.shape, keys.shape[1]
    group = heads // max(cached, 1)
    config = choose(CONFIGS, 0 if group == 1 else 1)
    operands = [one.contiguous() for one in (queries, keys, key_steps, values, value_steps, starts)]

    def start(splits: int, results: Tensor, logsums: Tensor) -> None:
        aligned = all_aligned(width, operands[1], operands[3])
        _decode_attention_kernel[(count * cached, splits)](
            *operands, results, logsums, cached, LOG2_E / math.sqrt(width),
            **config.constants, **_constants(width, group, aligned), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    return split_and_merge(queries, longest, config.constants["SPLIT"], start)


def _cost(
    queries: Tensor, keys: Tensor, key_steps: Tensor, values: Tensor, value_steps: Tensor, starts: Tensor, longest: int
) -> Cost:
    """The splits' results, 1/SPLIT of the cache's values, are not counted."""
    operands = (queries, keys, key_steps, values, value_steps, starts, queries)
    work = 4.0 * keys.shape[0] * queries[:1].numel() if len(queries) else 0.0
    return Cost(work, float(sum(one.nbytes for one in operands) + 4 * queries[..., 0].numel()))


def _scene(
    lengths: Sequence[int], heads: int, width: int, dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu", group: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`heads` of the cache, `group` queries for each."""
    on: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(sum(lengths) + width), "device": device}
    shape = sum(lengths), heads, width
    q = torch.randn(len(lengths), heads * group, width, **on).to(dtype)
    k, v = (torch.randint(-127, 128, shape, dtype=torch.int8, **on) for _ in range(2))
    c, d = (0.03 * torch.rand(shape[:2], **on) + 1e-3 for _ in range(2))
    return q, k, c, v, d, torch.tensor([0, *lengths], device=device).cumsum(0).int()


def _examples() -> Sequence[Example]:
    q, k, c, v, d, starts = _scene((40, 3), 2, 16)
    extreme = k.sign().mul(-128).clamp(-128, 127).to(torch.int8)
    turned = "one unit in the last place, where a result lies at the middle of two"
    return [
        Example("odd", (*_scene((5, 37, 1), 3, 20), 37)),
        Example("more keys than a split", (*_scene((600, 3, 530), 1, 7), 600)),
        Example("longer than was foretold", (*_scene((9, 1100), 1, 5), 700)),
        Example("groups of three, odd", (*_scene((5, 70, 1), 2, 20, group=3), 70)),
        Example("groups of more than a tile, in splits", (*_scene((530, 0), 1, 16, group=17), 530)),
        Example("groups, bf16", (*_scene((9, 70), 2, 16, torch.bfloat16, group=4), 70), 2.0**-7, turned),
        Example("groups, fp16, in splits", (*_scene((9, 530), 1, 16, torch.float16, group=8), 530), 2.0**-10, turned),
        Example("no keys for one, nor in its splits", (*_scene((0, 513), 2, 4), 513)),
        Example("no keys", (*_scene((0, 0), 2, 4), 0)),
        Example("no sequences", (*_scene((), 2, 4), 0)),
        Example("the ends of int8", (q, extreme, c, v, d, starts, 40)),
        Example(
            "large scores", (20 * q, k, c, v, d, starts, 40),
            1e3 * 2.0**-21, "a score below 10^3 errs by 2^-24 of it, its sum by eight times that, like the weight",
        ),
        Example("fp16", (*_scene((9, 33), 2, 16, torch.float16), 33), 2.0**-10, turned),
        Example("bf16 in splits", (*_scene((9, 530), 1, 16, torch.bfloat16), 530), 2.0**-7, turned),
    ]  # fmt: skip


def _load(device: torch.device) -> tuple[Any, ...]:
    """32 users of 32 heads in groups of four, whose caches hold 1,024 to 8,160 tokens."""
    lengths = [1024 + 7136 * user // 31 for user in range(32)]
    return *_scene(lengths, 8, 128, torch.bfloat16, device, 4), max(lengths)


DECODE = Kernel(
    name="decode-attention",
    formula="o = sum_j exp(c_j q k_j / sqrt(D)) d_j v_j / sum_j exp(c_j q k_j / sqrt(D)), k and v in int8",
    source="FlashInfer, arXiv:2501.01005",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(
        Entry(
            _decode_attention_kernel,
            {
                "queries": "*bf16",
                **dict.fromkeys(("keys", "values"), "*i8"),
                **dict.fromkeys(("key_steps", "value_steps", "results", "logsums"), "*fp32"),
                "starts": "*i32",
                "heads": "i32",
                "scale": "fp32",
            },
            tuple(
                Config({**one.constants, **_constants(128, group, True)}, one.warps, one.stages)
                for one, group in zip(CONFIGS, (1, 4), strict=True)
            ),
        ),
    ),
)

"""Attention over sequences of different lengths packed back to back, as pruning of tokens leaves them.

    s_ij = log2(e) q_i k_j / sqrt(D) + log2 size_j          o_i = sum_j 2^(s_ij - m_i) v_j / sum_j 2^(s_ij - m_i)
    lse_i = ln sum_j size_j exp(q_i k_j / sqrt(D))          m_i = ceil(max_j s_ij)

q: [queries, H, D], k, v: [keys, K, D] in one of float32, bf16, fp16; H a multiple of K, query head h reads key head h
// (H / K) (grouped queries, arXiv:2305.13245); starts: int32 [B + 1] of queries and of keys; size: float32 [keys],
tokens merged into one (Token Merging, arXiv:2210.09461), 0 hides a key; o as q, lse: float32 [queries, H]. `causal`
aligns the ends: the last query sees every key. A query without keys has o = 0, lse = -inf.

A program owns a block of queries and runs over its keys once with an online softmax (FlashAttention-2,
arXiv:2307.08691); it finds its sequence by bisection, so that no length comes to the host.
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
from edgekit.runtimes.kernels.online_softmax import ERRORS, LN_2, LOG2_E, LOWEST, Method, absorb
from edgekit.runtimes.kernels.tiles import all_aligned, at, multiply, narrow


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, query_starts: Tensor, key_starts: Tensor,
    sizes: Tensor | None = None, causal: bool = False, method: Method = Method(),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Shapes as above; the starts begin with 0 and end with the number of rows. Raises UsageError where heads do not
    divide."""
    if not keys.shape[1] or queries.shape[1] % keys.shape[1]:
        raise UsageError(f"{queries.shape[1]} heads of queries for {keys.shape[1]} of keys, allowed a multiple")
    result, logsum = call(ATTEND, queries, keys, values, query_starts, key_starts, sizes, causal, method)
    return result, logsum


def _reference(
    queries: Tensor, keys: Tensor, values: Tensor, query_starts: Tensor, key_starts: Tensor,
    sizes: Tensor | None, causal: bool, method: Method,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Scores, weights and sums are float32; a weight is rounded to the operands' type before it meets its value, but
    not before it is summed; the result is rounded once."""
    result = torch.zeros_like(queries)
    logsum = torch.full(queries.shape[:2], -math.inf, device=queries.device)
    scale = LOG2_E / math.sqrt(queries.shape[2])
    rows, columns = query_starts.tolist(), key_starts.tolist()
    group = queries.shape[1] // max(keys.shape[1], 1)
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    for first, last, begin, end in zip(rows, rows[1:], columns, columns[1:], strict=False):
        if first == last or begin == end:
            continue
        q, k, v = queries[first:last].float(), keys[begin:end].float(), values[begin:end].float()
        scores = torch.einsum("qhd,khd->qhk", q, k) * scale
        if sizes is not None:
            scores = scores + sizes[begin:end].log2()
        if causal:
            seen = torch.ones(last - first, end - begin, dtype=torch.bool, device=q.device)
            scores = scores.masked_fill(~seen.tril((end - begin) - (last - first))[:, None], -math.inf)
        highest = scores.amax(2, keepdim=True).ceil().clamp(min=LOWEST.value)
        weights = torch.exp2(scores - highest)
        total = weights.sum(2, keepdim=True)
        product = torch.einsum("qhk,khd->qhd", weights.to(values.dtype).float(), v)
        result[first:last] = (product / total.clamp(min=0.5)).to(queries.dtype)
        logsum[first:last] = torch.where(total > 0, (highest + total.log2()) * LN_2.value, -math.inf)[..., 0]
    return result, logsum


@triton.jit
def _ragged_attention_kernel(
    queries, keys, values, sizes, query_starts, key_starts, block_starts, results, logsums, sequences, heads, scale,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, SIZED: tl.constexpr, CAUSAL: tl.constexpr, THRESHOLD: tl.constexpr,
    DEGREE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    if block >= tl.load(block_starts + sequences):
        return
    sequence = block * 0
    beyond = sequence + sequences
    while beyond - sequence > 1:
        middle = (sequence + beyond) // 2
        ours = tl.load(block_starts + middle) <= block
        sequence = tl.where(ours, middle, sequence)
        beyond = tl.where(ours, beyond, middle)
    first_query, first_key = tl.load(query_starts + sequence), tl.load(key_starts + sequence)
    query_count = tl.load(query_starts + sequence + 1) - first_query
    key_count = tl.load(key_starts + sequence + 1) - first_key
    start_row = (block - tl.load(block_starts + sequence)) * BLOCK_M
    ahead = key_count - query_count

    rows, along = start_row + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    deep = along < WIDTH
    stride = heads * WIDTH
    key_stride = heads // GROUP * WIDTH
    place = (first_query + rows).to(tl.int64)[:, None] * stride + head * WIDTH + along[None, :]
    kept = (rows < query_count)[:, None] & deep[None, :]
    q = tl.load(at(queries, place, ALIGNED), mask=kept, other=0.0)
    product = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    reference = tl.full([BLOCK_M], LOWEST, tl.float32)

    last, common = key_count, key_count
    if CAUSAL:
        last = tl.minimum(start_row + BLOCK_M, query_count) + ahead
        common = tl.minimum(tl.maximum(start_row + ahead + 1, 0), key_count)
    whole = common // BLOCK_N * BLOCK_N
    for ragged in tl.static_range(2):  # tiles that every query sees in full, then those at an edge
        for start in range(whole * ragged, last * ragged + whole * (1 - ragged), BLOCK_N):
            columns = start + tl.arange(0, BLOCK_N)
            inside = (columns < key_count) | (ragged == 0)
            there = (first_key + columns).to(tl.int64)[:, None] * key_stride + head // GROUP * WIDTH + along[None, :]
            present = inside[:, None] & deep[None, :]
            k = tl.load(at(keys, there, ALIGNED), mask=present, other=0.0)
            scores = multiply(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)) * scale
            if SIZED:
                size = tl.load(sizes + first_key + columns, mask=inside, other=1.0)
                scores += tl.where(size > 0, tl.log2(tl.where(size > 0, size, 1.0)), float("-inf"))[None, :]
            if ragged == 1:
                seen = inside[None, :]
                if CAUSAL:
                    seen = seen & (columns[None, :] <= rows[:, None] + ahead)
                scores = tl.where(seen, scores, float("-inf"))
            weights, product, total, reference = absorb(scores, product, total, reference, THRESHOLD, DEGREE)
            v = tl.load(at(values, there, ALIGNED), mask=present, other=0.0)
            product = multiply(narrow(weights, v.dtype), v, product)

    some = total > 0
    divisor = tl.where(some, total, 1.0)
    logsum = tl.where(some, (reference + tl.log2(divisor)) * LN_2, float("-inf"))
    tl.store(at(results, place, ALIGNED), narrow(product / divisor[:, None], results.dtype.element_ty), mask=kept)
    tl.store(logsums + (first_query + rows).to(tl.int64) * heads + head, logsum, mask=rows < query_count)


# For long, middling and short sequences; wide heads and float32, whose tiles take more, use smaller ones.
CONFIGS = (
    Config({"BLOCK_M": 128, "BLOCK_N": 64}, warps=8, stages=3),
    Config({"BLOCK_M": 64, "BLOCK_N": 32}, warps=4, stages=3),
    Config({"BLOCK_M": 16, "BLOCK_N": 32}, warps=4, stages=2),
)


def _config(queries: Tensor, sequences: int) -> Config:
    """By the mean length, which the shapes tell."""
    mean, row_bytes = len(queries) / max(sequences, 1), queries[0, 0].nbytes
    if queries.dtype == torch.float32 or mean <= 32 or row_bytes > 256:
        return choose(CONFIGS, 2)
    return choose(CONFIGS, 0 if mean >= 128 and row_bytes <= 128 else 1)


def _constants(
    width: int, group: int, sized: bool, causal: bool, method: Method, aligned: bool
) -> dict[str, int]:  # fmt: skip
    chosen = {"WIDTH": width, "GROUP": group, "SIZED": int(sized), "CAUSAL": int(causal), "ALIGNED": int(aligned)}
    return {**chosen, "BLOCK_D": max(16, triton.next_power_of_2(width)), **method.constants}


def _launch(
    queries: Tensor, keys: Tensor, values: Tensor, query_starts: Tensor, key_starts: Tensor,
    sizes: Tensor | None, causal: bool, method: Method,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    count, heads, width = queries.shape
    sequences = len(query_starts) - 1
    result = torch.empty_like(queries, memory_format=torch.contiguous_format)
    logsum = torch.empty(count, heads, device=queries.device)
    if not result.numel():
        return result, logsum
    config = _config(queries, sequences)
    tile = config.constants["BLOCK_M"]
    blocks = torch.div(query_starts.diff() + tile - 1, tile, rounding_mode="floor").cumsum(0)
    operands = queries.contiguous(), keys.contiguous(), values.contiguous()
    _ragged_attention_kernel[(count // tile + sequences, heads)](
        *operands, logsum if sizes is None else sizes.contiguous(), query_starts.contiguous(), key_starts.contiguous(),
        torch.nn.functional.pad(blocks, (1, 0)).to(torch.int32), result, logsum,
        sequences, heads, LOG2_E / math.sqrt(width), **config.constants,
        **_constants(
            width, heads // max(keys.shape[1], 1), sizes is not None, causal, method,
            all_aligned(width, *operands, result),
        ),
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return result, logsum


def _cost(
    queries: Tensor, keys: Tensor, values: Tensor, query_starts: Tensor, key_starts: Tensor,
    sizes: Tensor | None, causal: bool, method: Method,
) -> Cost:  # fmt: skip
    """Two products for each pair of a query and a key that it sees."""
    pairs = 0
    for rows, columns in zip(query_starts.diff().tolist(), key_starts.diff().tolist(), strict=True):
        hidden = min(rows, columns) * (min(rows, columns) - 1) // 2 if causal else 0
        unseeing = max(rows - columns, 0) * columns if causal else 0
        pairs += rows * columns - hidden - unseeing
    count, heads, width = queries.shape
    operands = [queries, keys, values, query_starts, key_starts, queries]
    moved = sum(one.nbytes for one in operands) + 4 * count * heads + (0 if sizes is None else sizes.nbytes)
    return Cost(4.0 * pairs * heads * width, float(moved))


def _scene(
    rows: Sequence[int], columns: Sequence[int], heads: int, width: int, dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu", group: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`heads` of the keys, `group` of queries for each."""
    generator = torch.Generator().manual_seed(len(rows) + sum(columns))
    q = torch.randn(sum(rows), heads * group, width, generator=generator)
    k, v = (torch.randn(sum(columns), heads, width, generator=generator) for _ in range(2))
    starts = [torch.tensor([0, *n]).cumsum(0).int() for n in (rows, columns)]
    return tuple(one.to(device) for one in (q.to(dtype), k.to(dtype), v.to(dtype), *starts))


def _halved(scene: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    q, k, v, *starts = scene
    return (q / 10).to(dtype), k.to(dtype), (v + 1).to(dtype), *starts


def _examples() -> Sequence[Example]:
    plain, cubic, quintic = Method(threshold=0), Method(degree=3), Method(degree=5)
    odd = _scene((5, 37, 1), (5, 37, 1), 2, 20)
    long = _scene((70, 35), (70, 150), 1, 16)
    sizes = torch.arange(42) % 5 + torch.arange(42) / 64
    q, k, v, *starts = _scene((3, 6), (40, 4), 1, 8)
    # The scores of halved scenes are near 0: a weight is at most 1/23, a value at most four times the largest result.
    turned = "one unit in the last place of the result, and a quarter for one weight that lies where rounding turns"
    flat = _scene((9, 40), (33, 70), 2, 16)
    half, brain = (_halved(flat, to) for to in (torch.float16, torch.bfloat16))
    one_key = "one unit in the last place of the result, and one of a weight, all there is where one key is seen"
    middling_half = _scene((70, 35), (70, 150), 1, 16, torch.float16)
    long_half = _halved(_scene((150,), (70,), 1, 16), torch.float16)
    return [
        Example("odd", (*odd, None, False, Method())),
        Example("causal", (*odd, None, True, plain)),
        Example("sizes, of which some are 0", (*_scene((2, 40), (2, 40), 1, 7), sizes, False, Method())),
        Example("more keys and queries than a tile", (*long, None, True, Method())),
        Example("more queries than keys", (*_scene((40, 3), (17, 2), 1, 16), None, True, Method())),
        Example("groups of three heads", (*_scene((5, 40), (5, 33), 2, 20, group=3), None, True, Method())),
        Example("no keys for one, no queries for one", (*_scene((3, 0, 2), (0, 4, 5), 2, 5), None, False, Method())),
        Example("no queries", (*_scene((0,), (3,), 2, 5), None, False, Method())),
        Example("no sequences", (*_scene((), (), 2, 5), None, True, Method())),
        Example("fp16", (*half, None, False, Method()), 1.25 * 2.0**-10, turned),
        Example("long and fp16", (*long_half, None, False, Method()), 1.25 * 2.0**-10, turned),
        Example("middling and fp16", (*middling_half, None, True, Method()), 2.0**-9, one_key),
        Example("bf16", (*brain, None, False, Method()), 1.25 * 2.0**-7, turned),
        Example(
            "large scores", (30 * q, 30 * k, v, *starts, None, False, Method()),
            1e4 * 2.0**-22, "a score near 10^4 errs by 2^-24 of it, its sum by four times that, and so does the weight",
        ),
        Example("rising scores", (q * 0 + 1, k.sort(0).values * 4, v, *starts, None, False, Method(threshold=3))),
        Example("polynomial of degree 5", (*odd, None, False, quintic)),
        Example("polynomial of degree 3", (*odd, None, True, cubic), 2 * ERRORS[3], "of the weights and of their sum"),
    ]  # fmt: skip


def _load(device: torch.device) -> tuple[Any, ...]:
    """256 pictures of 196 patches and less after pruning, merged into tokens of sizes 1 to 4."""
    lengths = [64 + 37 * picture % 133 for picture in range(256)]
    sizes = torch.randint(1, 5, (sum(lengths),), device=device).float()
    return (*_scene(lengths, lengths, 12, 64, torch.bfloat16, device), sizes, False, Method())


ATTEND = Kernel(
    name="ragged-attention",
    formula="o_i = sum_j size_j exp(q_i k_j / sqrt(D)) v_j / sum_j size_j exp(q_i k_j / sqrt(D)) within a sequence",
    source="FlashAttention-2, arXiv:2307.08691; FlashAttention-4, arXiv:2603.05451",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(
        Entry(
            _ragged_attention_kernel,
            {
                **dict.fromkeys(("queries", "keys", "values", "results"), "*bf16"),
                **dict.fromkeys(("sizes", "logsums"), "*fp32"),
                **dict.fromkeys(("query_starts", "key_starts", "block_starts"), "*i32"),
                **dict.fromkeys(("sequences", "heads"), "i32"),
                "scale": "fp32",
            },
            tuple(
                Config({**one.constants, **_constants(64, group, sized, causal, method, True)}, one.warps, one.stages)
                for group, sized, causal, method in ((1, True, False, Method()), (4, False, True, Method(degree=3)))
                for one in CONFIGS
            ),
        ),
    ),
)

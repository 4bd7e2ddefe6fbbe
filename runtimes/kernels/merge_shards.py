"""Attention over the whole of the keys, from attention over shards of them.

    m = max_s lse_s,   w_s = exp(lse_s - m),   o = sum_s w_s o_s / sum_s w_s,   lse = m + ln sum_s w_s

o_s: [S, N, H, D] in one of float32, bf16, fp16; lse_s: float32 [S, N, H]; o: [N, H, D] of the same type, lse: float32
[N, H]. A shard without keys (lse_s = -inf) counts nothing, whatever its o_s holds, NaN included; where no shard has
keys o = 0 and lse = -inf. The merge is associative, so shards may be merged in steps (FlashInfer, arXiv:2501.01005).

A program owns a stretch of queries and heads: it reads their logarithms twice, and their outputs once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call
from edgekit.runtimes.kernels.online_softmax import LN_2, LOG2_E, LOWEST
from edgekit.runtimes.kernels.tiles import all_aligned, at, narrow


def merge(outputs: Tensor, logsums: Tensor) -> tuple[Tensor, Tensor]:
    """[S, N, H, D], float32 [S, N, H] -> [N, H, D], float32 [N, H]."""
    result, logsum = call(MERGE, outputs, logsums)
    return result, logsum


def _reference(outputs: Tensor, logsums: Tensor) -> tuple[Tensor, Tensor]:
    """Everything is float32; the result is rounded once."""
    if not len(outputs):
        return outputs.new_zeros(outputs.shape[1:]), logsums.new_full(logsums.shape[1:], -math.inf)
    highest = logsums.amax(0).clamp(min=LOWEST.value)
    weights = torch.exp(logsums - highest)
    total = weights.sum(0)
    kept = torch.where(logsums[..., None] > -math.inf, outputs.float(), 0.0)
    product = (weights[..., None] * kept).sum(0)
    result = product / total.clamp(min=0.5)[..., None]
    return result.to(outputs.dtype), torch.where(total > 0, highest + total.log(), -math.inf)


@triton.jit
def _merge_shards_kernel(
    outputs, logsums, results, merged, shards, count, log2_e,
    WIDTH: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, along = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    inside = rows < count
    kept = inside[:, None] & (along < WIDTH)[None, :]
    places = rows.to(tl.int64)
    highest = tl.full([BLOCK_N], LOWEST, tl.float32)
    row = places
    for _ in range(shards):
        highest = tl.maximum(highest, tl.load(logsums + row, mask=inside, other=float("-inf")))
        row += count
    total = tl.zeros([BLOCK_N], tl.float32)
    product = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    row = places
    for _ in range(shards):
        logsum = tl.load(logsums + row, mask=inside, other=float("-inf"))
        weight = tl.exp2((logsum - highest) * log2_e)
        some = kept & (logsum > float("-inf"))[:, None]
        output = tl.load(at(outputs, row[:, None] * WIDTH + along[None, :], ALIGNED), mask=some, other=0.0)
        total += weight
        product += weight[:, None] * output.to(tl.float32)
        row += count
    divisor = tl.where(total > 0, total, 1.0)
    after = at(results, places[:, None] * WIDTH + along[None, :], ALIGNED)
    tl.store(after, narrow(product / divisor[:, None], results.dtype.element_ty), mask=kept)
    tl.store(merged + places, tl.where(total > 0, highest + tl.log2(divisor) * LN_2, float("-inf")), mask=inside)


# By the bytes of a value: tiles of like size.
CONFIGS = {
    2: Config({"BLOCK_N": 16}, warps=4, stages=3),
    4: Config({"BLOCK_N": 8}, warps=4, stages=3),
}


def _constants(width: int, aligned: bool) -> dict[str, int]:
    return {"WIDTH": width, "ALIGNED": int(aligned), "BLOCK_D": triton.next_power_of_2(width)}


def _launch(outputs: Tensor, logsums: Tensor) -> tuple[Tensor, Tensor]:
    shards, count, heads, width = outputs.shape
    result = torch.empty(count, heads, width, dtype=outputs.dtype, device=outputs.device)
    merged = torch.empty(count, heads, device=outputs.device)
    config = CONFIGS[outputs.element_size()]
    if result.numel():
        outputs = outputs.contiguous()
        _merge_shards_kernel[(triton.cdiv(count * heads, config.constants["BLOCK_N"]),)](
            outputs,
            logsums.contiguous(),
            result,
            merged,
            shards,
            count * heads,
            LOG2_E,
            **config.constants,
            **_constants(width, all_aligned(width, outputs, result)),
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return result, merged


def _cost(outputs: Tensor, logsums: Tensor) -> Cost:
    """The logarithms, which are read twice, are not the largest operand."""
    results = outputs[:1].nbytes + logsums[:1].nbytes
    return Cost(2.0 * outputs.numel() + 3.0 * logsums.numel(), float(outputs.nbytes + logsums.nbytes + results))


def _scene(
    shards: int, count: int, heads: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(shards + width)
    outputs = torch.randn(shards, count, heads, width, generator=generator).to(dtype)
    return outputs, 4 * torch.randn(shards, count, heads, generator=generator)


def _examples() -> Sequence[Example]:
    outputs, logsums = _scene(4, 3, 2, 9)
    some = torch.arange(24).view(4, 3, 2) % 3 > 0
    poisoned = torch.where(some[..., None], outputs, math.nan), torch.where(some, logsums, -math.inf)
    turned = "one unit in the last place, where a result lies at the middle of two"
    coarse = 1000 + logsums / 4
    return [
        Example("odd", _scene(3, 5, 3, 20)),
        Example("more rows than a tile", _scene(2, 37, 3, 16)),
        Example("one shard", _scene(1, 4, 2, 8)),
        Example("no shards", _scene(0, 4, 2, 8)),
        Example("no queries", _scene(3, 0, 2, 8)),
        Example("no keys in some shards, whose outputs are NaN", poisoned),
        Example("no keys in any shard", (outputs, torch.full_like(logsums, -math.inf))),
        Example("one shard far above the others", (outputs, logsums * 1e4)),
        Example("large logarithms", (outputs, coarse)),
        Example("fp16", _scene(5, 3, 2, 16, torch.float16), 2.0**-10, turned),
        Example("bf16", _scene(5, 3, 2, 16, torch.bfloat16), 2.0**-7, turned),
    ]


def _load(device: torch.device) -> tuple[Any, ...]:
    """Eight shards of a long cache, 64 users, 32 heads."""
    outputs, logsums = _scene(8, 64, 32, 128, torch.bfloat16)
    return outputs.to(device), logsums.to(device)


MERGE = Kernel(
    name="merge-shards",
    formula="o = sum_s exp(lse_s) o_s / sum_s exp(lse_s), lse = ln sum_s exp(lse_s)",
    source="FlashInfer, arXiv:2501.01005",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=tuple(
        Entry(
            _merge_shards_kernel,
            {
                **dict.fromkeys(("outputs", "results"), kind),
                **dict.fromkeys(("logsums", "merged"), "*fp32"),
                **dict.fromkeys(("shards", "count"), "i32"),
                "log2_e": "fp32",
            },
            (Config({**one.constants, **_constants(128, True)}, one.warps, one.stages),),
        )
        for kind, one in (("*bf16", CONFIGS[2]), ("*fp32", CONFIGS[4]))
    ),
)

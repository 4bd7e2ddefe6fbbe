"""Attention of one query per sequence against a cache of product codes: four bits for each sub-vector.

    T[g, r] = q_g a[g, r] / sqrt(D)     s_j = sum_g T[g, x_jg]     o_g = sum_j p_j b[g, y_jg],  p = softmax(s)

q: [B, H, D] in one of float32, bf16, fp16, cut into G sub-vectors q_g; a, b: [K, G, 16, D / G] in a type of their own,
the centroids of keys and values; x, y: uint8 [keys, K, G / 2], code 2 i in the low half of byte i and code 2 i + 1 in
the high one; sequences back to back with starts: int32 [B + 1]; o as q, lse: float32 [B, H]. D / G = 4 is one bit of
cache for each number (channels coded together: arXiv:2405.03917; product quantization of a cache: PQCache,
arXiv:2407.12820).

Centroids are read once per program: scores are sums out of its table, values are looked up and weighted. Codes are
read as whole bytes and taken apart in registers. H is a multiple of K as in decode_attention; queries that share a
head of the cache each read its codes, which are few beside the look-ups. Splits, `longest` and sequences without keys:
see there.
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
from edgekit.runtimes.kernels.decode_attention import (
    dense_reference,
    expect_groups,
    finish,
    split_and_merge,
    stretch,
)
from edgekit.runtimes.kernels.online_softmax import LOG2_E, LOWEST, absorb

CENTROIDS: tl.constexpr = tl.constexpr(16)


def attend(
    queries: Tensor, key_codes: Tensor, key_books: Tensor, value_codes: Tensor, value_books: Tensor, starts: Tensor,
    longest: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Raises UsageError where heads, codes and centroids are not of the shapes above."""
    heads, width = key_codes.shape[1], queries.shape[2]
    groups = 2 * key_codes.shape[2]
    expect_groups(queries.shape[1], heads)
    for codes, books in ((key_codes, key_books), (value_codes, value_books)):
        wanted = (heads, groups, CENTROIDS.value, width // max(groups, 1))
        if codes.shape != key_codes.shape or tuple(books.shape) != wanted or width % max(groups, 1):
            raise UsageError(f"centroids are {tuple(books.shape)} for {groups} codes of {width} numbers, want {wanted}")
    result, logsum = call(DECODE, queries, key_codes, key_books, value_codes, value_books, starts, longest)
    return result, logsum


def encode(vectors: Tensor, books: Tensor) -> Tensor:
    """[keys, H, D] -> uint8 [keys, H, G / 2], each sub-vector by its nearest centroid in `books` [H, G, 16, D / G]."""
    apart = vectors.float().unflatten(2, (books.shape[1], books.shape[3]))
    distances = (apart[..., None, :] - books.float()).square().sum(-1)
    codes = distances.argmin(-1).to(torch.uint8)
    pairs: Tensor = codes[..., 0::2] | codes[..., 1::2] << 4
    return pairs


def decode(codes: Tensor, books: Tensor) -> Tensor:
    """uint8 [keys, H, G / 2] -> float32 [keys, H, D], the centroids themselves."""
    apart = torch.stack([codes & 15, codes >> 4], -1).flatten(2).long()
    heads, groups = books.shape[:2]
    head = torch.arange(heads, device=codes.device)[:, None]
    found: Tensor = books.float()[head, torch.arange(groups, device=codes.device), apart]
    return found.flatten(2)


def _reference(
    queries: Tensor, key_codes: Tensor, key_books: Tensor, value_codes: Tensor, value_books: Tensor, starts: Tensor,
    longest: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return dense_reference(queries, decode(key_codes, key_books), decode(value_codes, value_books), starts)


@triton.jit
def _codes(pointer, token, inside, PAIRS: tl.constexpr, BLOCK_G: tl.constexpr):
    """Codes int32 [N, BLOCK_G] at `token` [N], from bytes [N, PAIRS]: the low half first."""
    pair = tl.arange(0, BLOCK_G // 2)[None, :]
    both = tl.load(pointer + token[:, None] * PAIRS + pair, mask=inside[:, None] & (pair < PAIRS), other=0)
    return tl.interleave(both & 15, both >> 4).to(tl.int32)


@triton.jit
def _decode_codes_kernel(
    queries, key_codes, key_books, value_codes, value_books, starts, results, logsums, heads, scale,
    GROUPS: tl.constexpr, PART: tl.constexpr, SHARED_BY: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = GROUPS * PART
    BLOCK_D: tl.constexpr = BLOCK_G * BLOCK_P
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads // SHARED_BY
    first, last = stretch(starts, sequence, SPLIT)
    centroid, group, part = tl.arange(0, CENTROIDS), tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_P)

    known = (group < GROUPS)[:, None] & (part < PART)[None, :]
    inner = group[:, None] * PART + part[None, :]
    q = tl.load(queries + tl.program_id(0) * WIDTH + inner, mask=known, other=0.0)
    place = ((head * GROUPS + group[None, :, None]) * CENTROIDS + centroid[:, None, None]) * PART + part[None, None, :]
    book = tl.load(key_books + place, mask=known[None, :, :], other=0.0)
    table = tl.sum(q.to(tl.float32)[None, :, :] * book.to(tl.float32), 2) * scale
    values = tl.load(value_books + place, mask=known[None, :, :], other=0.0).to(tl.float32)
    values = tl.reshape(values, [CENTROIDS, BLOCK_D])

    product = tl.zeros([1, BLOCK_D], tl.float32)
    total = tl.zeros([1], tl.float32)
    reference = tl.full([1], LOWEST, tl.float32)
    for start in range(first, last, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        inside = rows < last
        token = rows.to(tl.int64) * (heads // SHARED_BY) + head
        x = _codes(key_codes, token, inside, GROUPS // 2, BLOCK_G)
        scores = tl.sum(tl.gather(table, x, 0), 1)
        scores = tl.where(inside, scores, float("-inf"))[None, :]
        weights, product, total, reference = absorb(scores, product, total, reference, 0, 0)
        y = _codes(value_codes, token, inside, GROUPS // 2, BLOCK_G)
        y = tl.reshape(tl.broadcast_to(y[:, :, None], [BLOCK_N, BLOCK_G, BLOCK_P]), [BLOCK_N, BLOCK_D])
        product += tl.sum(tl.trans(weights) * tl.gather(values, y, 0), 0)[None, :]
    along = tl.reshape(inner, [1, BLOCK_D])
    finish(results, logsums, product, total, reference, along, tl.reshape(known, [1, BLOCK_D]), WIDTH, 1)


CONFIGS = (Config({"SPLIT": 1024, "BLOCK_N": 32}, warps=4, stages=2),)


def _constants(groups: int, part: int, shared_by: int) -> dict[str, int]:
    ceiled = {name: triton.next_power_of_2(n) for name, n in (("BLOCK_G", groups), ("BLOCK_P", part))}
    return {"GROUPS": groups, "PART": part, "SHARED_BY": shared_by, **ceiled}


def _launch(
    queries: Tensor, key_codes: Tensor, key_books: Tensor, value_codes: Tensor, value_books: Tensor, starts: Tensor,
    longest: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (count, heads, _), (cached, groups, _, part) = queries.shape, key_books.shape
    constants = _constants(groups, part, heads // max(cached, 1))
    (config,) = CONFIGS
    operands = [one.contiguous() for one in (queries, key_codes, key_books, value_codes, value_books, starts)]

    def start(splits: int, results: Tensor, logsums: Tensor) -> None:
        _decode_codes_kernel[(count * heads, splits)](
            *operands, results, logsums, heads, LOG2_E / math.sqrt(groups * part),
            **config.constants, **constants, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    return split_and_merge(queries, longest, config.constants["SPLIT"], start)


def _cost(
    queries: Tensor, key_codes: Tensor, key_books: Tensor, value_codes: Tensor, value_books: Tensor, starts: Tensor,
    longest: int,
) -> Cost:  # fmt: skip
    """A table per query and head; an addition for each code of a key, two operations for each number of a value. The
    queries that share a head of the cache cross it once each."""
    shared_by = queries.shape[1] // max(key_codes.shape[1], 1)
    tables = 2.0 * CENTROIDS.value * queries.numel()
    codes = 2.0 * key_codes.numel() * shared_by
    operands = (queries, key_codes, key_books, value_codes, value_books, starts, queries)
    moved = sum(one.nbytes for one in operands) + 4 * queries[..., 0].numel()
    return Cost(tables + codes + 2.0 * codes * key_books.shape[3], float(moved), float(max(shared_by, 1)))


def _scene(
    lengths: Sequence[int], heads: int, groups: int, part: int, dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu", shared_by: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`heads` of the cache, `shared_by` queries for each."""
    on: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(sum(lengths) + groups), "device": device}
    q = torch.randn(len(lengths), heads * shared_by, groups * part, **on).to(dtype)
    shape = sum(lengths), heads, groups // 2
    x, y = (torch.randint(256, shape, dtype=torch.uint8, **on) for _ in range(2))
    a, b = (torch.randn(heads, groups, 16, part, **on).to(dtype) for _ in range(2))
    return q, x, a, y, b, torch.tensor([0, *lengths], device=device).cumsum(0).int()


def _examples() -> Sequence[Example]:
    q, x, a, y, b, starts = _scene((40, 3), 2, 4, 4)
    turned = "one unit in the last place, where a result lies at the middle of two"
    return [
        Example("odd", (*_scene((5, 37, 1), 3, 6, 3), 37)),
        Example("two codes", (*_scene((4,), 1, 2, 1), 4)),
        Example("more keys than a split", (*_scene((1100, 3), 1, 2, 4), 1100)),
        Example("groups of queries, odd", (*_scene((5, 37), 2, 6, 3, shared_by=3), 37)),
        Example("no keys for one", (*_scene((0, 9), 2, 4, 2), 9)),
        Example("no sequences", (*_scene((), 2, 4, 2), 0)),
        Example("the first and the last centroids", (q, x // 128 * 255, a, y // 128 * 255, b, starts, 40)),
        Example(
            "large scores", (100 * q, x, a, y, b, starts, 40),
            1e3 * 2.0**-21, "a score below 10^3 errs by 2^-24 of it, its sum by eight times that, like the weight",
        ),
        Example("fp16", (*_scene((9, 33), 2, 4, 4, torch.float16), 33), 2.0**-10, turned),
        Example("bf16", (*_scene((9, 33), 2, 4, 4, torch.bfloat16), 33), 2.0**-7, turned),
    ]  # fmt: skip


def _load(device: torch.device) -> tuple[Any, ...]:
    """32 users of 32 heads in groups of four, whose caches hold 1,024 to 8,160 tokens, 32 codes each."""
    lengths = [1024 + 7136 * user // 31 for user in range(32)]
    return *_scene(lengths, 8, 32, 4, torch.bfloat16, device, 4), max(lengths)


DECODE = Kernel(
    name="decode-codes",
    formula="s_j = sum_g T[g, x_jg], o_g = sum_j softmax(s)_j b[g, y_jg], codes of four bits",
    source="PQCache, arXiv:2407.12820",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(
        Entry(
            _decode_codes_kernel,
            {
                **dict.fromkeys(("queries", "key_books", "value_books"), "*bf16"),
                **dict.fromkeys(("key_codes", "value_codes"), "*u8"),
                **dict.fromkeys(("results", "logsums"), "*fp32"),
                "starts": "*i32",
                "heads": "i32",
                "scale": "fp32",
            },
            tuple(
                Config({**one.constants, **_constants(32, 4, shared_by)}, one.warps, one.stages)
                for shared_by in (1, 4)
                for one in CONFIGS
            ),
        ),
    ),
)

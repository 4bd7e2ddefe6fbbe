"""Attention of one query per sequence against a cache of product codes: four bits for each sub-vector.

    T[g, r] = q_g a[g, r] / sqrt(D)     s_j = sum_g T[g, x_jg]     o_g = sum_j p_j b[g, y_jg],  p = softmax(s)

q: [B, H, D] in one of float32, bf16, fp16, cut into G sub-vectors q_g; a, b: [H, G, 16, D / G] in a type of their own,
the centroids of keys and values; x, y: uint8 [keys, H, G / 2], code 2 i in the low half of byte i and code 2 i + 1 in
the high one; sequences back to back with starts: int32 [B + 1]; o as q, lse: float32 [B, H]. D / G = 4 is one bit of
cache for each number (channels coded together: arXiv:2405.03917; product quantization of a cache: PQCache,
arXiv:2407.12820).

Centroids are read once per program: scores are sums out of its table, values are looked up and weighted. Splits,
`longest` and sequences without keys are those of decode_attention.
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
from edgekit.runtimes.kernels.decode_attention import dense_reference, finish, split_and_merge, stretch
from edgekit.runtimes.kernels.online_softmax import LOG2_E, LOWEST, absorb

CENTROIDS: tl.constexpr = tl.constexpr(16)


def attend(
    queries: Tensor, key_codes: Tensor, key_books: Tensor, value_codes: Tensor, value_books: Tensor, starts: Tensor,
    longest: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Raises UsageError where codes and centroids are not of the shapes above."""
    heads, width = queries.shape[1:]
    groups = 2 * key_codes.shape[2]
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
def _codes(pointer, token, group, mask, PAIRS: tl.constexpr):
    """Codes [N, ..] of `group` [1, ..] at `token` [N, 1]."""
    byte = tl.load(pointer + token * PAIRS + group // 2, mask=mask, other=0).to(tl.int32)
    return (byte >> (group % 2 * 4)) & 15


@triton.jit
def _decode_codes_kernel(
    queries, key_codes, key_books, value_codes, value_books, starts, results, logsums, heads, scale,
    GROUPS: tl.constexpr, PART: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = GROUPS * PART
    PAIRS: tl.constexpr = GROUPS // 2
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first, last = stretch(starts, sequence, SPLIT)
    centroid, group = tl.arange(0, CENTROIDS), tl.arange(0, BLOCK_G)
    part, along = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)

    known = (group < GROUPS)[:, None] & (part < PART)[None, :]
    q = tl.load(queries + tl.program_id(0) * WIDTH + group[:, None] * PART + part[None, :], mask=known, other=0.0)
    place = (head * GROUPS + group[None, :, None]) * CENTROIDS + centroid[:, None, None]
    book = tl.load(key_books + place * PART + part[None, None, :], mask=known[None, :, :], other=0.0)
    table = tl.sum(q.to(tl.float32)[None, :, :] * book.to(tl.float32), 2) * scale
    deep = (along < WIDTH)[None, :]
    place = (head * GROUPS + along[None, :] // PART) * CENTROIDS + centroid[:, None]
    values = tl.load(value_books + place * PART + along[None, :] % PART, mask=deep, other=0.0).to(tl.float32)

    product = tl.zeros([1, BLOCK_D], tl.float32)
    total = tl.zeros([1], tl.float32)
    reference = tl.full([1], LOWEST, tl.float32)
    for start in range(first, last, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        inside = rows < last
        token = (rows.to(tl.int64) * heads + head)[:, None]
        x = _codes(key_codes, token, group[None, :], inside[:, None] & (group < GROUPS)[None, :], PAIRS)
        scores = tl.sum(tl.gather(table, x, 0), 1)
        scores = tl.where(inside, scores, float("-inf"))[None, :]
        weights, product, total, reference = absorb(scores, product, total, reference, 0, 0)
        y = _codes(value_codes, token, along[None, :] // PART, inside[:, None] & deep, PAIRS)
        product += tl.sum(tl.trans(weights) * tl.gather(values, y, 0), 0)[None, :]
    finish(results, logsums, product, total, reference, WIDTH, BLOCK_D)


CONFIGS = (Config({"SPLIT": 1024, "BLOCK_N": 32}, warps=4, stages=2),)


def _constants(groups: int, part: int) -> dict[str, int]:
    ceiled = {"BLOCK_G": groups, "BLOCK_P": part, "BLOCK_D": groups * part}
    return {"GROUPS": groups, "PART": part, **{name: triton.next_power_of_2(n) for name, n in ceiled.items()}}


def _launch(
    queries: Tensor, key_codes: Tensor, key_books: Tensor, value_codes: Tensor, value_books: Tensor, starts: Tensor,
    longest: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    heads, groups, _, part = key_books.shape
    (config,) = CONFIGS
    operands = [one.contiguous() for one in (queries, key_codes, key_books, value_codes, value_books, starts)]

    def start(grid: tuple[int, int], results: Tensor, logsums: Tensor) -> None:
        _decode_codes_kernel[grid](
            *operands, results, logsums, heads, LOG2_E / math.sqrt(groups * part),
            **config.constants, **_constants(groups, part), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    return split_and_merge(queries, longest, config.constants["SPLIT"], start)


def _cost(
    queries: Tensor, key_codes: Tensor, key_books: Tensor, value_codes: Tensor, value_books: Tensor, starts: Tensor,
    longest: int,
) -> Cost:  # fmt: skip
    """A table per query and head; an addition for each code of a key, two operations for each number of a value."""
    tables = 2.0 * CENTROIDS.value * queries.numel()
    codes = 2.0 * key_codes.numel()
    operands = (queries, key_codes, key_books, value_codes, value_books, starts, queries)
    moved = sum(one.nbytes for one in operands) + 4 * queries[..., 0].numel()
    return Cost(tables + codes + 2.0 * codes * key_books.shape[3], float(moved))


def _scene(
    lengths: Sequence[int], heads: int, groups: int, part: int, dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, ...]:  # fmt: skip
    on: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(sum(lengths) + groups), "device": device}
    q = torch.randn(len(lengths), heads, groups * part, **on).to(dtype)
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
    """32 users of 8 heads whose caches hold 1,024 to 8,160 tokens, 32 codes each."""
    lengths = [1024 + 7136 * user // 31 for user in range(32)]
    return *_scene(lengths, 8, 32, 4, torch.bfloat16, device), max(lengths)


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
            tuple(Config({**one.constants, **_constants(32, 4)}, one.warps, one.stages) for one in CONFIGS),
        ),
    ),
)

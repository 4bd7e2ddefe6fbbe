"""BLEU of token ids on the device, one score for each sentence, with several references.

    p_n  = (matched_n + s) / (total_n + s)        s = 1 for n > 1 where smoothing is on, else 0
    BLEU = min(1, exp(1 - r / c)) (p_1 p_2 p_3 p_4)^(1/4)

    hypotheses  int32 [B, T], hypothesis_lengths  int32 [B]         c: its length
    references  int32 [B, R, T'], reference_lengths  int32 [B, R]   r: the length nearest to c, the shorter of two
    ->  float32 [B]

A length below zero marks a reference that is not there. matched_n clips each n-gram to its largest count in any one
reference. Without a match of some n, and no smoothing, the score is 0; so it is without a word in common.

There is no dictionary of n-grams. The k-th time (from 0) that the hypothesis says an n-gram is a match where some
reference says it more than k times, so that clipped counts are sums of comparisons of positions: one tile of equal
tokens serves all four n. An item is a program's own, its tokens stay in the cache (Papineni et al., BLEU, ACL 2002,
P02-1040; for ids on the device with a dictionary of the batch: TensorBLEU, arXiv:2510.05485).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call

LONGEST = 4  # tokens in an n-gram


def token_bleu(
    hypotheses: Tensor, hypothesis_lengths: Tensor, references: Tensor, reference_lengths: Tensor, smooth: bool = False
) -> Tensor:
    """float32 [B], from 0 to 1. Lengths may not exceed T and T'; what lies beyond them is not read."""
    found: Tensor = call(BLEU, hypotheses, hypothesis_lengths, references, reference_lengths, smooth)
    return found


def _counts(equal: Tensor, size: int) -> Tensor:
    """bool [..., I, J], tokens that are equal -> int64 [..., I - size + 1]: at how many places J an n-gram begins."""
    rows, columns = equal.shape[-2] - size + 1, equal.shape[-1] - size + 1
    along = torch.stack([equal[..., n : n + rows, n : n + columns] for n in range(size)])
    return along.all(0).sum(-1)


def _reference(
    hypotheses: Tensor, hypothesis_lengths: Tensor, references: Tensor, reference_lengths: Tensor, smooth: bool = False
) -> Tensor:
    """Works with all comparisons at once: bool [B, R, T, T']."""
    device, (count, long) = hypotheses.device, hypotheses.shape
    words = torch.arange(long, device=device) < hypothesis_lengths[:, None]
    known = torch.arange(references.shape[2], device=device) < reference_lengths[..., None]
    own = (hypotheses[:, :, None] == hypotheses[:, None]) & words[:, :, None] & words[:, None]
    theirs = (hypotheses[:, None, :, None] == references[:, :, None]) & words[:, None, :, None] & known[:, :, None]
    lengths, score = hypothesis_lengths.float(), torch.zeros(count, device=device)
    for size in range(1, LONGEST + 1):
        matched = torch.zeros(count, device=device)
        if long >= size and references.shape[1] and references.shape[2] >= size:
            earlier = torch.ones(long, long, dtype=torch.bool, device=device).tril(-1)
            # An n-gram that began earlier did so at each of its tokens: the diagonal keeps the order.
            said = _counts(own & earlier, size)
            matched = (said < _counts(theirs, size).amax(1)).sum(1).float()
        added = float(smooth and size > 1)
        score += ((matched + added) / ((lengths - size + 1).clamp(min=0) + added).clamp(min=1)).log() / LONGEST
    there = reference_lengths >= 0
    apart = torch.where(there, (reference_lengths - hypothesis_lengths[:, None]).abs() * 2, 2**31 - 1)
    apart = apart + (there & (reference_lengths > hypothesis_lengths[:, None]))  # of two, the shorter one
    if references.shape[1]:
        nearest = reference_lengths.gather(1, apart.argmin(1, keepdim=True))[:, 0].float()
        score += (1 - nearest / lengths.clamp(min=1)).clamp(max=0)
    return score.exp()


@triton.jit
def _tile(
    row, a0, a1, a2, a3, n0, n1, n2, n3, before, length, first, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Adds to n0 .. n3 [BLOCK_I] at how many of BLOCK_J places in `row` the n-gram a0 .. begins, below `before`."""
    j = first + tl.arange(0, BLOCK_J)
    b0 = tl.load(row + j, mask=j < length, other=0)
    b1 = tl.load(row + j + 1, mask=j + 1 < length, other=0)
    b2 = tl.load(row + j + 2, mask=j + 2 < length, other=0)
    b3 = tl.load(row + j + 3, mask=j + 3 < length, other=0)
    same = (a0[:, None] == b0[None, :]) & (j < length)[None, :] & (j[None, :] < before[:, None])
    n0 += tl.sum(same.to(tl.int32), 1)
    same = same & (a1[:, None] == b1[None, :]) & (j + 1 < length)[None, :]
    n1 += tl.sum(same.to(tl.int32), 1)
    same = same & (a2[:, None] == b2[None, :]) & (j + 2 < length)[None, :]
    n2 += tl.sum(same.to(tl.int32), 1)
    same = same & (a3[:, None] == b3[None, :]) & (j + 3 < length)[None, :]
    n3 += tl.sum(same.to(tl.int32), 1)
    return n0, n1, n2, n3


@triton.jit
def _precision(matched, total, added):
    return (tl.sum(matched).to(tl.float32) + added) / tl.maximum(tl.maximum(total, 0).to(tl.float32) + added, 1.0)


@triton.jit
def _bleu_kernel(
    hypotheses, hypothesis_lengths, references, reference_lengths, scores, long, wide, count, added,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64)
    length = tl.load(hypothesis_lengths + item)
    own = hypotheses + item * long
    none = tl.zeros([BLOCK_I], tl.int32)
    m0, m1, m2, m3 = none, none, none, none
    for start in range(0, length, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        a0 = tl.load(own + i, mask=i < length, other=0)
        a1 = tl.load(own + i + 1, mask=i + 1 < length, other=0)
        a2 = tl.load(own + i + 2, mask=i + 2 < length, other=0)
        a3 = tl.load(own + i + 3, mask=i + 3 < length, other=0)
        k0, k1, k2, k3 = none, none, none, none
        for first in range(0, tl.minimum(start + BLOCK_I, length), BLOCK_J):
            k0, k1, k2, k3 = _tile(own, a0, a1, a2, a3, k0, k1, k2, k3, i, length, first, BLOCK_I, BLOCK_J)
        most0, most1, most2, most3 = none, none, none, none
        for which in range(count):
            row = references + (item * count + which) * wide
            size = tl.load(reference_lengths + item * count + which)
            n0, n1, n2, n3 = none, none, none, none
            for first in range(0, size, BLOCK_J):
                n0, n1, n2, n3 = _tile(row, a0, a1, a2, a3, n0, n1, n2, n3, none + wide, size, first, BLOCK_I, BLOCK_J)
            most0, most1 = tl.maximum(most0, n0), tl.maximum(most1, n1)
            most2, most3 = tl.maximum(most2, n2), tl.maximum(most3, n3)
        m0 += ((k0 < most0) & (i < length)).to(tl.int32)
        m1 += ((k1 < most1) & (i + 1 < length)).to(tl.int32)
        m2 += ((k2 < most2) & (i + 2 < length)).to(tl.int32)
        m3 += ((k3 < most3) & (i + 3 < length)).to(tl.int32)
    nearest, apart = tl.full([], 0, tl.int32), tl.full([], 2147483647, tl.int32)
    for which in range(count):
        size = tl.load(reference_lengths + item * count + which)
        away = 2 * tl.abs(size - length) + (size > length).to(tl.int32)  # of two, the shorter one
        nearer = (size >= 0) & (away < apart)
        nearest, apart = tl.where(nearer, size, nearest), tl.where(nearer, away, apart)
    product = _precision(m0, length, 0.0) * _precision(m1, length - 1, added)
    product *= _precision(m2, length - 2, added) * _precision(m3, length - 3, added)
    short = tl.minimum(1 - nearest.to(tl.float32) / tl.maximum(length, 1).to(tl.float32), 0.0)
    tl.store(scores + item, tl.sqrt(tl.sqrt(product)) * tl.exp(short))


CONFIGS = (Config({"BLOCK_I": 32, "BLOCK_J": 64}, warps=4, stages=2),)


def _launch(
    hypotheses: Tensor, hypothesis_lengths: Tensor, references: Tensor, reference_lengths: Tensor, smooth: bool = False
) -> Tensor:
    (items, long), (config,) = hypotheses.shape, CONFIGS
    scores = torch.empty(items, dtype=torch.float32, device=hypotheses.device)
    if items:
        _bleu_kernel[(items,)](
            hypotheses.contiguous(), hypothesis_lengths.contiguous(), references.contiguous(),
            reference_lengths.contiguous(), scores, long, references.shape[2], references.shape[1],
            float(smooth), **config.constants, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return scores


def _cost(
    hypotheses: Tensor, hypothesis_lengths: Tensor, references: Tensor, reference_lengths: Tensor, smooth: bool = False
) -> Cost:
    """Operations on integers: four comparisons of each pair of positions. Each block of positions of a hypothesis
    crosses the references again, from the cache while an item's fit it."""
    items, long = hypotheses.shape
    pairs = items * long * (references.shape[1] * references.shape[2] + long / 2)
    read = sum(one.nbytes for one in (hypotheses, hypothesis_lengths, references, reference_lengths))
    return Cost(2.0 * LONGEST * pairs, read + 4.0 * items, max(1.0, -(-long // CONFIGS[0].constants["BLOCK_I"])))


def _scene(
    items: int, count: int, long: int, wide: int, words: int = 3, seed: int = 0, device: Any = "cpu"
) -> tuple[Tensor, ...]:
    """Few different words, so that n-grams repeat; lengths from 0 on; half of what a reference says is said again."""
    generator = torch.Generator(device).manual_seed(seed)
    on: dict[str, Any] = {"generator": generator, "device": device}
    lengths = torch.randint(long + 1, (items,), **on), torch.randint(wide + 1, (items, count), **on)
    said = torch.randint(words, (items, long), **on)
    truth = torch.randint(words, (items, count, wide), **on)
    share = min(long, wide) // 2
    truth[..., :share] = said[:, None, :share]
    return said.int(), lengths[0].int(), truth.int(), lengths[1].int()


def _examples() -> Sequence[Example]:
    def score(name: str, arguments: tuple[Any, ...]) -> Example:
        return Example(name, arguments, 1e-5, "counts are exact; roots, logarithms and exp are within a few ulps")

    said, lengths, truth, sizes = _scene(4, 2, 11, 9, seed=1)
    missing = torch.tensor([[-1, 9], [5, -1], [-1, -1], [0, 3]], dtype=torch.int32)
    alone = torch.arange(12).int().expand(1, 12)
    full = torch.tensor([12], dtype=torch.int32)
    large = torch.tensor([2**31 - 1, -(2**31), -1, 0, 2**31 - 1, -(2**31), -1, 0, 7, 7, 7, 7]).int()[None]
    return [
        score("odd", (*_scene(5, 3, 13, 17, 2, 7), False)),
        score("odd, smoothed", (*_scene(5, 3, 13, 17, 4, 7), True)),
        score("more than a tile", (*_scene(2, 2, 70, 131, 2), True)),
        score("a perfect score", (alone, full, alone[:, None], full[:, None], False)),
        score(
            "the same word", (torch.ones(2, 40).int(), torch.tensor([40, 3]).int(), truth[:2] * 0 + 1, sizes[:2], True)
        ),
        score("references that are not there", (said, lengths, truth, missing, True)),
        score("hypotheses of 0 to 3 tokens", (said, torch.arange(4).int(), truth, sizes, True)),
        score("the largest ids", (large, full, large[:, None].roll(1, 2), full[:, None], False)),
        score("no references", (said, lengths, truth[:, :0], sizes[:, :0], True)),
        score("no tokens", (said[:, :0], lengths * 0, truth[..., :0], sizes * 0, True)),
        score("no items", (said[:0], lengths[:0], truth[:0], sizes[:0], False)),
    ]


def _load(device: torch.device) -> tuple[Any, ...]:
    return *_scene(1024, 4, 256, 256, 32000, device=device), True


BLEU = Kernel(
    name="token-bleu",
    formula="min(1, exp(1 - r / c)) (p_1 p_2 p_3 p_4)^(1/4), clipped",
    source="TensorBLEU, arXiv:2510.05485",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(
        Entry(
            _bleu_kernel,
            {
                **dict.fromkeys(("hypotheses", "hypothesis_lengths", "references", "reference_lengths"), "*i32"),
                "scores": "*fp32",
                **dict.fromkeys(("long", "wide", "count"), "i32"),
                "added": "fp32",
            },
            CONFIGS,
        ),
    ),
)

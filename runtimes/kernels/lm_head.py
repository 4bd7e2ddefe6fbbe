"""The head of a learned sparse encoder: one weight for each word of the vocabulary, no logits in memory.

    y(b, v) = max_t m(b, t) log1p(relu(h(b, t) e(v) + c(v)))
            = log1p(relu(c(v) + max over valid t of h(b, t) e(v)))

    h: [B, T, D] hidden states and e: [V, D] embeddings, both float32 or both float16; c: float32 [V]
    m: bool [B, T], true at valid positions; y: float32 [B, V], 0 where a text has no valid position

Rounding, ReLU and log1p never change an order, so the maximum may be taken of the bare products and the rest once for
each word, not once for each position: the tile of logits is forgotten as soon as it is maximised (Sparton,
arXiv:2603.25011). Logits are taken to be numbers: a NaN is not passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel, call
from edgekit.runtimes.kernels.choice import choose


def weigh_words(hidden: Tensor, embeddings: Tensor, bias: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """[B, T, D], [V, D] of the same type, float32 [V], bool [B, T] -> float32 [B, V]."""
    if bias is None:
        bias = torch.zeros(len(embeddings), device=hidden.device)
    if valid is None:
        valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    found: Tensor = call(LM_HEAD, hidden, embeddings, bias, valid)
    return found


def _reference(hidden: Tensor, embeddings: Tensor, bias: Tensor, valid: Tensor) -> Tensor:
    logits = hidden.float() @ embeddings.float().T + bias
    weights = torch.log1p(torch.relu(logits)).masked_fill(~valid[:, :, None], 0.0)
    return torch.nn.functional.pad(weights, (0, 0, 1, 0)).amax(1)  # a position of zeros, for texts of none


@triton.jit
def _log1p(x):
    """Of x >= 0. What 1 + x loses to rounding is given back by the factor, which has the same loss (Goldberg 1991)."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def _lm_head_kernel(
    hidden, embeddings, bias, valid, weights, length, words,
    WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    text = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    known = columns < words
    best = tl.full([BLOCK_V], float("-inf"), tl.float32)
    for first in range(0, length, BLOCK_T):
        rows = first + tl.arange(0, BLOCK_T)
        use = tl.load(valid + text * length + rows, mask=rows < length, other=0) != 0
        product = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
        for start in range(0, WIDTH, BLOCK_D):
            along = start + tl.arange(0, BLOCK_D)
            h = tl.load(
                hidden + (text * length + rows[:, None]) * WIDTH + along[None, :],
                mask=use[:, None] & (along[None, :] < WIDTH),
                other=0.0,
            )
            e = tl.load(
                embeddings + columns[None, :].to(tl.int64) * WIDTH + along[:, None],
                mask=known[None, :] & (along[:, None] < WIDTH),
                other=0.0,
            )
            product = tl.dot(h, e, product, input_precision="tf32x3")
        best = tl.maximum(best, tl.max(tl.where(use[:, None], product, float("-inf")), 0))
    logit = best + tl.load(bias + columns, mask=known, other=0.0)
    tl.store(weights + text * words + columns, _log1p(tl.maximum(logit, 0.0)), mask=known)


CONFIGS = (
    Config({"BLOCK_T": 64, "BLOCK_V": 128, "BLOCK_D": 64}, warps=8, stages=3),  # texts
    Config({"BLOCK_T": 16, "BLOCK_V": 128, "BLOCK_D": 64}, warps=4, stages=3),  # questions of a few words
)


def _config(length: int) -> Config:
    return choose(CONFIGS, 0 if length > 16 else 1)


def _launch(hidden: Tensor, embeddings: Tensor, bias: Tensor, valid: Tensor) -> Tensor:
    (texts, length, width), words = hidden.shape, len(embeddings)
    weights = torch.empty(texts, words, dtype=torch.float32, device=hidden.device)
    config = _config(length)
    if weights.numel():
        _lm_head_kernel[(triton.cdiv(words, config.constants["BLOCK_V"]), texts)](
            hidden.contiguous(),
            embeddings.contiguous(),
            bias.float().contiguous(),
            valid.contiguous().view(torch.uint8),
            weights,
            length,
            words,
            WIDTH=width,
            **config.constants,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return weights


def _cost(hidden: Tensor, embeddings: Tensor, bias: Tensor, valid: Tensor) -> Cost:
    """Each tile of positions of each text crosses the embeddings once more, from the cache where they fit."""
    (texts, length, width), words = hidden.shape, len(embeddings)
    moved = hidden.nbytes + embeddings.nbytes + bias.nbytes + valid.nbytes + 4 * texts * words
    passes = texts * triton.cdiv(length, _config(length).constants["BLOCK_T"])
    return Cost(2.0 * texts * length * width * words, float(moved), float(max(passes, 1)))


def _scene(
    texts: int, length: int, width: int, words: int, kind: torch.dtype = torch.float32, size: float = 1.0
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = size * torch.randn(texts, length, width, generator=generator)
    embeddings = torch.randn(words, width, generator=generator)
    bias = torch.randn(words, generator=generator)
    valid = torch.rand(texts, length, generator=generator) < 0.7
    return hidden.to(kind), embeddings.to(kind), bias, valid


def _examples() -> Sequence[Example]:
    exact = "products of half-precision numbers are exact in float32, so that only the order of their sums differs"
    hidden, embeddings, bias, valid = _scene(2, 5, 7, 3)
    return [
        Example("odd", _scene(2, 37, 19, 13)),
        Example("more words than a tile, a wide state", _scene(1, 20, 70, 130)),
        Example("a few words of a question", _scene(3, 4, 33, 40)),
        Example("float16", _scene(2, 9, 24, 17, torch.float16), why=exact),
        Example("no texts", _scene(0, 5, 7, 3)),
        Example("no positions", _scene(2, 0, 7, 3)),
        Example("no valid positions", (hidden, embeddings, bias, torch.zeros_like(valid))),
        Example("nothing above zero", (hidden, embeddings, bias - 1e6, valid), 0.0, "ReLU leaves zeros"),
        Example("large values", _scene(2, 9, 7, 5, size=1e12)),
        Example("small values", (1e-6 * hidden, embeddings, torch.zeros(3), valid)),
        Example("one of each", _scene(1, 1, 1, 1)),
    ]


def _load(device: torch.device) -> tuple[Any, ...]:
    """32 passages of 256 tokens, BERT's width and vocabulary."""
    hidden = torch.randn(32, 256, 768, device=device, dtype=torch.float16)
    embeddings = torch.randn(30522, 768, device=device, dtype=torch.float16)
    valid = torch.ones(32, 256, dtype=torch.bool, device=device)
    return hidden, embeddings, torch.zeros(30522, device=device), valid


LM_HEAD = Kernel(
    name="sparse-lm-head",
    formula="y(b, v) = log1p(relu(c(v) + max over valid t of h(b, t) e(v)))",
    source="Sparton, arXiv:2603.25011",
    reference=_reference,
    launch=_launch,
    cost=_cost,
    examples=_examples,
    load=_load,
    entries=(
        Entry(
            _lm_head_kernel,
            {
                "hidden": "*fp16",
                "embeddings": "*fp16",
                "bias": "*fp32",
                "valid": "*u8",
                "weights": "*fp32",
                "length": "i32",
                "words": "i32",
            },
            tuple(Config({**one.constants, "WIDTH": 768}, one.warps, one.stages) for one in CONFIGS),
        ),
    ),
)

"""What the kernels are there to reach on a GPU, measured: each as a ratio beside the ratio that is wanted.

Peers are what a user would have without them: torch's own attention on dense batches and on batches padded to the
longest sequence, a round of k-means in torch, and for memory-bound kernels the bandwidth of the GPU itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from edgekit.runtimes.kernels.kmeans import ASSIGN, UPDATE
from edgekit.runtimes.kernels.matmul_int4 import W4A16
from edgekit.runtimes.kernels.online_softmax import Method
from edgekit.runtimes.kernels.ragged_attention import ATTEND
from edgekit.runtimes.kernels.ragged_decode import DECODE
from edgekit.runtimes.kernels.ragged_dequantize import DEQUANTIZE
from edgekit.runtimes.kernels.timing import Rates, median_ms


@dataclass(frozen=True)
class Goal:
    """`reached` of `wanted`; both are ratios, larger is better."""

    what: str
    reached: float
    wanted: float


def measure_goals(device: torch.device, rates: Rates) -> Iterator[Goal]:
    def time(run: Callable[..., object], *arguments: Any) -> float:
        return median_ms(lambda: run(*arguments), device)

    for name, kernel in (("ragged decode", DEQUANTIZE), ("ragged decode with a rotation", DECODE)):
        arguments = kernel.load(device)
        memory_ms = rates.memory_ms(kernel.cost(*arguments))
        yield Goal(f"{name}, of the bandwidth", memory_ms / time(kernel.launch, *arguments), 0.8)
    sixteen = W4A16.load(device)
    for rows in (1, 4, 16):
        product = (sixteen[0][:rows], *sixteen[1:])
        cost = W4A16.cost(*product)
        bound_ms = max(rates.memory_ms(cost), rates.arithmetic_ms(cost))
        yield Goal(f"W4A16 with {rows} rows, of its bound", bound_ms / time(W4A16.launch, *product), 0.7)
    for name, lengths, wanted in (("dense", [1024] * 16, 0.9), ("ragged", [64 + 60 * n for n in range(16)], 1.0)):
        q, k, v, starts = packed(lengths, 12, 64, device)
        ours = time(ATTEND.launch, q, k, v, starts, starts, None, False, Method())
        mask = None if len(set(lengths)) == 1 else key_mask(lengths, device)
        torchs = time(scaled_dot_product_attention, *(pad(one, lengths) for one in (q, k, v)), mask)
        yield Goal(f"attention on {name} batches, torch's time over ours", torchs / ours, wanted)
    points, centres = ASSIGN.load(device)
    ours = time(_kmeans_round, ASSIGN.launch, UPDATE.launch, points, centres)
    torchs = time(_kmeans_round, ASSIGN.reference, UPDATE.reference, points, centres)
    yield Goal("a round of k-means, torch's time over ours", torchs / ours, 5.0)


def _kmeans_round(assign: Callable[..., Any], update: Callable[..., Any], points: Tensor, centres: Tensor) -> None:
    update(points, assign(points, centres), centres)


def packed(lengths: list[int], heads: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values bf16 [tokens, heads, width], back to back, and int32 starts."""
    generator = torch.Generator().manual_seed(len(lengths))
    q, k, v = (torch.randn(sum(lengths), heads, width, generator=generator).bfloat16() for _ in range(3))
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    return q.to(device), k.to(device), v.to(device), starts.to(device)


def pad(rows: Tensor, lengths: list[int]) -> Tensor:
    """[tokens, heads, width] -> [B, heads, longest, width], zeros behind each sequence."""
    return torch.nn.utils.rnn.pad_sequence(rows.split(lengths), batch_first=True).transpose(1, 2).contiguous()


def key_mask(lengths: list[int], device: torch.device) -> Tensor:
    """bool [B, 1, 1, longest], true where there is a key."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None, None].to(device)

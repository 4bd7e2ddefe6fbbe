"""k-means without the matrix of distances: assignment with an online argmin, and an update by sorted segments.

lloyd.py holds formulae, references and the calls of both; here x, c and p are float32. Norms and penalties are added up
before the kernel. The distances of a tile live in registers and are forgotten with it, so that memory sees points and
centres alone. For the update points are sorted by cluster and each centre is summed over its own stretch: no atomics,
the same bits at every run (Flash-KMeans, arXiv:2603.09229).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from edgekit.runtimes.kernels.base import Config, Cost, Entry, Example, Kernel
from edgekit.runtimes.kernels.choice import choose
from edgekit.runtimes.kernels.lloyd import assign_reference, update_reference


@triton.jit
def _assign_kernel(
    points, centres, norms, nearest, count, clusters,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < count
    best = tl.full([BLOCK_N], float("inf"), tl.float32)
    index = tl.zeros([BLOCK_N], tl.int32)
    for first in range(0, clusters, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for start in tl.static_range(0, WIDTH, BLOCK_D):
            along = start + tl.arange(0, BLOCK_D)
            x = tl.load(
                points + rows[:, None].to(tl.int64) * WIDTH + along[None, :],
                mask=inside[:, None] & (along[None, :] < WIDTH),
                other=0.0,
            )
            c = tl.load(
                centres + columns[None, :] * WIDTH + along[:, None],
                mask=(columns[None, :] < clusters) & (along[:, None] < WIDTH),
                other=0.0,
            )
            product = tl.dot(x, c, product, input_precision="tf32x3")
        norm = tl.load(norms + columns, mask=columns < clusters, other=float("inf"))
        least, where = tl.min(norm[None, :] - 2 * product, 1, return_indices=True)
        better = least < best
        best = tl.where(better, least, best)
        index = tl.where(better, first + where, index)
    tl.store(nearest + rows, index, mask=inside)


@triton.jit
def _update_kernel(
    points, order, starts, centres, after,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    cluster = tl.program_id(0)
    along = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = along < WIDTH
    first, last = tl.load(starts + cluster), tl.load(starts + cluster + 1)
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for place in range(first, last, BLOCK_N):
        rows = place + tl.arange(0, BLOCK_N)
        which = tl.load(order + rows, mask=rows < last, other=0)
        total += tl.load(
            points + which[:, None] * WIDTH + along[None, :], mask=(rows < last)[:, None] & inside[None, :], other=0.0
        )
    before = tl.load(centres + cluster * WIDTH + along, mask=inside, other=0.0)
    mean = tl.sum(total, 0) / tl.maximum(last - first, 1)
    tl.store(after + cluster * WIDTH + along, tl.where(last > first, mean, before), mask=inside)


ASSIGN_CONFIGS = (
    Config({"BLOCK_N": 128, "BLOCK_K": 64, "BLOCK_D": 32}, warps=8, stages=3),
    Config({"BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_D": 32}, warps=4, stages=2),
)
UPDATE_CONFIGS = (Config({"BLOCK_N": 32, "BLOCK_D": 64}, warps=4, stages=2),)


def _assign_launch(points: Tensor, centres: Tensor, penalty: Tensor | None = None) -> Tensor:
    count, width = points.shape
    nearest = torch.empty(count, dtype=torch.int32, device=points.device)
    config = choose(ASSIGN_CONFIGS, 0 if count >= 128 else 1)
    norms = centres.square().sum(1)
    if count:
        _assign_kernel[(triton.cdiv(count, config.constants["BLOCK_N"]),)](
            points.contiguous(),
            centres.contiguous(),
            norms if penalty is None else norms + penalty,
            nearest,
            count,
            len(centres),
            WIDTH=width,
            **config.constants,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return nearest


def _update_launch(points: Tensor, nearest: Tensor, centres: Tensor) -> Tensor:
    clusters, width = centres.shape
    order = torch.sort(nearest, stable=True).indices
    counts = torch.bincount(nearest.long(), minlength=clusters)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    after = torch.empty_like(centres, memory_format=torch.contiguous_format)
    (config,) = UPDATE_CONFIGS
    if centres.numel():
        _update_kernel[(clusters, triton.cdiv(width, config.constants["BLOCK_D"]))](
            points.contiguous(),
            order,
            starts,
            centres.contiguous(),
            after,
            WIDTH=width,
            **config.constants,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return after


def _assign_cost(points: Tensor, centres: Tensor, penalty: Tensor | None = None) -> Cost:
    (count, width), clusters = points.shape, len(centres)
    return Cost(2.0 * count * clusters * width, 4.0 * (count * width + clusters * width + count))


def _update_cost(points: Tensor, nearest: Tensor, centres: Tensor) -> Cost:
    """The sort reads and writes the order, once for each of its radix passes; counted as one."""
    count, width = points.shape
    return Cost(float(count * width), 4.0 * (count * width + 2 * centres.numel() + 2 * count))


def _scene(count: int, clusters: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, width, generator=generator)
    chosen = torch.randint(clusters, (count,), generator=generator)
    return centres[chosen] + 0.1 * torch.randn(count, width, generator=generator), centres


def _assign_examples() -> Sequence[Example]:
    exact = {"tolerance": 0.0, "why": "integers"}
    many, few = _scene(90, 11, 5)
    scenes: list[tuple[str, tuple[Any, ...]]] = [
        ("odd", _scene(37, 19, 7)),
        ("wide", _scene(5, 3, 70)),
        ("more clusters than a tile", _scene(20, 130, 4)),
        ("one point, one cluster", _scene(1, 1, 1)),
        ("no points", (torch.empty(0, 5), torch.randn(3, 5))),
        ("ties", (torch.zeros(4, 3), torch.ones(70, 3))),
        ("dear clusters", (many, few, torch.arange(11.0).flip(0))),
        ("a penalty that no distance outweighs", (many, few, 1e3 * (torch.arange(11) != 7))),
        ("large values", tuple(1e6 * value for value in _scene(9, 4, 3))),
    ]
    return [Example(name, arguments, **exact) for name, arguments in scenes]  # type: ignore[arg-type]


def _update_examples() -> Sequence[Example]:
    points, centres = _scene(71, 9, 13)
    nearest = assign_reference(points, centres)
    alone = torch.zeros(5, dtype=torch.int32)
    return [
        Example("odd", (points, nearest, centres)),
        Example("empty clusters keep their centres", (points[:5], alone, centres)),
        Example("no points", (points[:0], nearest[:0], centres)),
        Example("transposed", (points.T.contiguous().T, nearest, centres.T.contiguous().T)),
        Example("wide", (_scene(6, 3, 130)[0], torch.tensor([2, 0, 2, 2, 0, 1]).int(), torch.ones(3, 130))),
    ]


def _assign_load(device: torch.device) -> tuple[Any, ...]:
    return torch.randn(1 << 20, 64, device=device), torch.randn(256, 64, device=device)


def _update_load(device: torch.device) -> tuple[Any, ...]:
    points, centres = _assign_load(device)
    return points, torch.randint(256, (len(points),), device=device, dtype=torch.int32), centres


ASSIGN = Kernel(
    name="kmeans-assign",
    formula="a(i) = argmin_k |c_k|^2 - 2 x_i c_k + p_k",
    source="Flash-KMeans, arXiv:2603.09229",
    reference=assign_reference,
    launch=_assign_launch,
    cost=_assign_cost,
    examples=_assign_examples,
    load=_assign_load,
    entries=(
        Entry(
            _assign_kernel,
            {
                "points": "*fp32",
                "centres": "*fp32",
                "norms": "*fp32",
                "nearest": "*i32",
                "count": "i32",
                "clusters": "i32",
            },
            tuple(Config({**one.constants, "WIDTH": 64}, one.warps, one.stages) for one in ASSIGN_CONFIGS),
        ),
    ),
)

UPDATE = Kernel(
    name="kmeans-update",
    formula="c_k = mean of x_i with a(i) = k",
    source="Flash-KMeans, arXiv:2603.09229",
    reference=update_reference,
    launch=_update_launch,
    cost=_update_cost,
    examples=_update_examples,
    load=_update_load,
    entries=(
        Entry(
            _update_kernel,
            {"points": "*fp32", "order": "*i64", "starts": "*i32", "centres": "*fp32", "after": "*fp32"},
            tuple(Config({**one.constants, "WIDTH": 64}, one.warps, one.stages) for one in UPDATE_CONFIGS),
        ),
    ),
)

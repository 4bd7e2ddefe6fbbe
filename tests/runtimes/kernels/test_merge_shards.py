"""Attention in shards and merged is attention at once, whatever the shards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgekit.runtimes.kernels.merge_shards import MERGE, merge
from edgekit.runtimes.kernels.online_softmax import Method
from edgekit.runtimes.kernels.ragged_attention import ATTEND, attend


def shards(*cuts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs and logarithms over the stretches between `cuts` of 30 keys, and those over all."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(count, 2, 8, generator=generator) for count in (6, 30, 30))
    ends = torch.tensor([0, 6]).int()

    def over(first: int, last: int) -> tuple[Tensor, Tensor]:
        return attend(q, k[first:last], v[first:last], ends, torch.tensor([0, last - first]).int())

    parts = [over(first, last) for first, last in zip((0, *cuts), (*cuts, 30), strict=True)]
    return torch.stack([one for one, _ in parts]), torch.stack([one for _, one in parts]), *over(0, 30)


@pytest.mark.parametrize("cuts", [(), (1,), (7, 7, 20), (0, 10, 29, 30)])
@pytest.mark.parametrize("run", [merge, MERGE.launch], ids=["reference", "kernel"])
def test_merged_shards_are_attention_at_once(run: object, cuts: tuple[int, ...]) -> None:
    outputs, logsums, result, logsum = shards(*cuts)
    found, whole = run(outputs, logsums)  # type: ignore[operator]
    assert torch.allclose(found, result, atol=1e-5) and torch.allclose(whole, logsum, atol=1e-5)


def test_shards_may_be_merged_in_steps_and_in_any_order() -> None:
    outputs, logsums, *_ = shards(5, 11, 26)
    once = MERGE.launch(outputs, logsums)
    steps = [MERGE.launch(outputs[pair], logsums[pair]) for pair in ([3, 0], [2, 1])]
    twice = MERGE.launch(torch.stack([one for one, _ in steps]), torch.stack([one for _, one in steps]))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(once, twice, strict=True))


def test_a_shard_alone_passes_unchanged_and_an_empty_one_leaves_no_trace() -> None:
    outputs, logsums, *_ = shards()
    result, logsum = MERGE.launch(outputs, logsums)
    assert torch.equal(result, outputs[0]) and torch.equal(logsum, logsums[0])
    empty = torch.full_like(outputs, math.nan), torch.full_like(logsums, -math.inf)
    beside = MERGE.launch(torch.cat([empty[0], outputs]), torch.cat([empty[1], logsums]))
    assert torch.equal(beside[0], result) and torch.equal(beside[1], logsum)


def test_kernels_of_shards_and_merge_fit_together() -> None:
    generator = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(count, 1, 16, generator=generator) for count in (4, 20, 20))
    ends, halves = torch.tensor([0, 4]).int(), torch.tensor([0, 10]).int()
    parts = [ATTEND.launch(q, k[i : i + 10], v[i : i + 10], ends, halves, None, False, Method()) for i in (0, 10)]
    found, _ = MERGE.launch(torch.stack([one for one, _ in parts]), torch.stack([one for _, one in parts]))
    at_once, _ = attend(q, k, v, ends, torch.tensor([0, 20]).int())
    assert torch.allclose(found, at_once, atol=1e-5)

"""Decoding against an int8 cache: torch's attention over what the cache stands for, in any company and any splits."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.decode_attention import DECODE, attend


def scene(*lengths: int, width: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    shape = sum(lengths), 2, width
    q = torch.randn(len(lengths), 2, width, generator=generator)
    k, v = (torch.randint(-127, 128, shape, generator=generator).to(torch.int8) for _ in range(2))
    c, d = (0.02 * torch.rand(shape[:2], generator=generator) + 1e-3 for _ in range(2))
    return [q, k, c, v, d, torch.tensor([0, *lengths]).cumsum(0).int()]


@pytest.mark.parametrize("run", [attend, DECODE.launch], ids=["reference", "kernel"])
def test_each_sequence_is_what_torch_computes_on_the_dequantized_cache(run: object) -> None:
    q, k, c, v, d, starts = scene(37, 1, 530)
    result, logsum = run(q, k, c, v, d, starts, 530)  # type: ignore[operator]
    ends = starts.tolist()
    for row, (first, last) in enumerate(pairwise(ends)):
        keys, values = ((one * step[..., None])[first:last].transpose(0, 1) for one, step in ((k, c), (v, d)))
        query = q[row][:, None]
        assert torch.allclose(result[row], scaled_dot_product_attention(query, keys, values)[:, 0], atol=1e-5)
        scores = (query @ keys.mT)[:, 0] / math.sqrt(q.shape[2])
        assert torch.allclose(logsum[row], scores.logsumexp(1), atol=1e-5)


def test_a_sequence_has_the_same_bits_in_any_company() -> None:
    q, k, c, v, d, starts = scene(20, 33, 7)
    together = DECODE.launch(q, k, c, v, d, starts, 33)
    own = slice(20, 53)
    alone = DECODE.launch(q[1:2], k[own], c[own], v[own], d[own], torch.tensor([0, 33]).int(), 33)
    assert all(torch.equal(one[1:2], other) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("longest", [0, 512, 600, 5000])
def test_a_wrong_forecast_of_the_length_costs_no_key(longest: int) -> None:
    """The weights of 600 keys are summed in another order."""
    operands = scene(600, 3)
    right, found = DECODE.launch(*operands, 600), DECODE.launch(*operands, longest)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(right, found, strict=True))


def test_steps_scale_scores_and_values_apart() -> None:
    q, k, c, v, d, starts = scene(19)
    result, logsum = DECODE.launch(q, k, c, v, d, starts, 19)
    assert torch.allclose(DECODE.launch(q, k, c, v, 4 * d, starts, 19)[0], 4 * result)
    hotter = DECODE.launch(q / 2, k, 2 * c, v, d, starts, 19)
    assert torch.allclose(hotter[0], result, atol=1e-6) and torch.allclose(hotter[1], logsum, atol=1e-6)


@pytest.mark.parametrize("run", [attend, DECODE.launch], ids=["reference", "kernel"])
@pytest.mark.parametrize(("cached", "group"), [(2, 4), (1, 3)])
def test_queries_of_a_group_read_one_head_of_the_cache(run: object, cached: int, group: int) -> None:
    """As many heads of the cache as of queries, each written out, are the same."""
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(3, cached * group, 12, generator=generator)
    k, v = (torch.randint(-127, 128, (70, cached, 12), generator=generator).to(torch.int8) for _ in range(2))
    c, d = (0.01 + 0.02 * torch.rand(70, cached, generator=generator) for _ in range(2))
    starts = torch.tensor([0, 1, 65, 70]).int()
    shared = run(q, k, c, v, d, starts, 64)  # type: ignore[operator]
    spread = [one.repeat_interleave(group, 1) for one in (k, c, v, d)]
    apart = DECODE.launch(q, *spread, starts, 64)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(shared, apart, strict=True))


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match="5 heads of queries for 2 of the cache"):
        attend(torch.zeros(1, 5, 4), *(torch.zeros(3, 2, 4).char(), torch.zeros(3, 2)) * 2, torch.tensor([0, 3]), 3)

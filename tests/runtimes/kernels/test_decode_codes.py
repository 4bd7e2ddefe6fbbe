"""Decoding against product codes: torch's attention over the centroids, and codes that mean what they say."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.decode_codes import DECODE, attend, decode, encode


def scene(*lengths: int, groups: int = 4, part: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(12)
    shape = sum(lengths), 2, groups // 2
    q = torch.randn(len(lengths), 2, groups * part, generator=generator)
    x, y = (torch.randint(256, shape, generator=generator).to(torch.uint8) for _ in range(2))
    a, b = (torch.randn(2, groups, 16, part, generator=generator) for _ in range(2))
    return [q, x, a, y, b, torch.tensor([0, *lengths]).cumsum(0).int()]


@pytest.mark.parametrize("run", [attend, DECODE.launch], ids=["reference", "kernel"])
def test_each_sequence_is_what_torch_computes_on_the_centroids(run: object) -> None:
    q, x, a, y, b, starts = scene(21, 1, 1030)
    result, _ = run(q, x, a, y, b, starts, 1030)  # type: ignore[operator]
    keys, values = decode(x, a), decode(y, b)
    for row, (first, last) in enumerate(pairwise(starts.tolist())):
        alone = [one[first:last].transpose(0, 1) for one in (keys, values)]
        assert torch.allclose(result[row], scaled_dot_product_attention(q[row][:, None], *alone)[:, 0], atol=1e-5)


def test_the_even_code_lies_in_the_low_half_of_a_byte() -> None:
    books = torch.arange(64.0).view(1, 4, 16, 1)  # the number of group g and centroid r is 16 g + r
    codes = torch.tensor([[[0x21, 0x43]]], dtype=torch.uint8)
    assert decode(codes, books).tolist() == [[[1.0, 18.0, 35.0, 52.0]]]


def test_centroids_are_encoded_as_themselves_and_others_by_the_nearest() -> None:
    _, x, a, *_ = scene(50)
    exact = decode(x, a)
    assert torch.equal(encode(exact, a), x)
    moved = exact + 0.3 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    nearest, others = decode(encode(moved, a), a), decode(x.flip(0), a)
    assert bool(((moved - nearest).square().sum(2) <= (moved - others).square().sum(2)).all())


def test_a_sequence_has_the_same_bits_in_any_company() -> None:
    q, x, a, y, b, starts = scene(20, 33, 7)
    together = DECODE.launch(q, x, a, y, b, starts, 33)
    own = slice(20, 53)
    alone = DECODE.launch(q[1:2], x[own], a, y[own], b, torch.tensor([0, 33]).int(), 33)
    assert all(torch.equal(one[1:2], other) for one, other in zip(together, alone, strict=True))


def test_a_wrong_forecast_of_the_length_costs_no_key() -> None:
    operands = scene(1100, 3)
    right, found = DECODE.launch(*operands, 1100), DECODE.launch(*operands, 0)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(right, found, strict=True))


def test_codes_and_centroids_that_do_not_fit_are_refused() -> None:
    q, x, a, y, b, starts = scene(5)
    with pytest.raises(
        UsageError, match=r"centroids are \(2, 4, 15, 3\) for 4 codes of 12 numbers, want \(2, 4, 16, 3\)"
    ):
        attend(q, x, a[:, :, :15], y, b, starts, 5)
    with pytest.raises(UsageError, match="for 2 codes of 12 numbers"):
        attend(q, x[..., :1], a, y[..., :1], b, starts, 5)


@pytest.mark.parametrize("run", [attend, DECODE.launch], ids=["reference", "kernel"])
def test_queries_of_a_group_read_one_head_of_the_cache(run: object) -> None:
    _, x, a, y, b, starts = scene(21, 40)
    q = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(4))
    shared = run(q, x, a, y, b, starts, 40)  # type: ignore[operator]
    codes, books = ([one.repeat_interleave(3, at) for one in pair] for at, pair in ((1, (x, y)), (0, (a, b))))
    apart = DECODE.launch(q, codes[0], books[0], codes[1], books[1], starts, 40)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(shared, apart, strict=True))
    assert DECODE.cost(q, x, a, y, b, starts, 40).passes == 3
    with pytest.raises(UsageError, match="5 heads of queries for 2 of the cache"):
        attend(q[:, :5], x, a, y, b, starts, 40)

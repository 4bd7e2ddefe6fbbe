"""Packed attention against torch's own, sequence by sequence, and what packing and merging must not change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.online_softmax import Method
from edgekit.runtimes.kernels.ragged_attention import ATTEND, attend

LENGTHS = (5, 37, 1, 20)


def starts(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def scene(rows: tuple[int, ...] = LENGTHS, columns: tuple[int, ...] = LENGTHS, width: int = 12) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(sum(n), 2, width, generator=generator) for n in (rows, columns, columns))
    return q, k, v, starts(*rows), starts(*columns)


def launch(
    *arguments: Tensor, sizes: Tensor | None = None, causal: bool = False, method: Method = Method()
) -> tuple[Tensor, Tensor]:
    result, logsum = ATTEND.launch(*arguments, sizes, causal, method)
    return result, logsum


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("run", [attend, launch], ids=["reference", "kernel"])
def test_each_sequence_is_what_torch_computes_alone(run: object, causal: bool) -> None:
    q, k, v, ends, _ = scene()
    result, logsum = run(q, k, v, ends, ends, causal=causal)  # type: ignore[operator]
    for first, last in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        alone = [one[first:last].transpose(0, 1) for one in (q, k, v)]
        wanted = scaled_dot_product_attention(*alone, is_causal=causal).transpose(0, 1)
        assert torch.allclose(result[first:last], wanted, atol=1e-5)
        scores = alone[0] @ alone[1].mT / math.sqrt(q.shape[2])
        if causal:
            scores = scores.masked_fill(~torch.ones_like(scores).bool().tril(), -math.inf)
        assert torch.allclose(logsum[first:last], scores.logsumexp(2).T, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_has_the_same_bits_in_any_company(causal: bool) -> None:
    """All packings here have one mean length class, hence one tile: the sums run in one order."""
    q, k, v, *_ = scene((20, 20, 20), (20, 20, 20))
    middle = slice(20, 40)
    together = launch(q, k, v, starts(20, 20, 20), starts(20, 20, 20), causal=causal)
    alone = launch(q[middle], k[middle], v[middle], starts(20), starts(20), causal=causal)
    beside = launch(q, k, v, starts(7, 13, 0, 20, 20), starts(13, 7, 0, 20, 20), causal=causal)
    for one, other, third in zip(together, alone, beside, strict=True):
        assert torch.equal(one[middle], other) and torch.equal(one[20:], third[20:])


def test_a_token_of_size_three_is_three_equal_tokens() -> None:
    q, k, v, ends, _ = scene((4, 6), (4, 6))
    repeats = torch.tensor([1, 3, 1, 2, 1, 1, 3, 1, 2, 1])
    spread = [one.repeat_interleave(repeats, 0) for one in (k, v)]
    merged = launch(q, k, v, ends, ends, sizes=repeats.float())
    apart = launch(q, *spread, ends, starts(7, 9))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(merged, apart, strict=True))


def test_a_token_of_size_zero_is_no_token() -> None:
    q, k, v, ends, _ = scene((4, 6), (4, 6))
    sizes = torch.ones(10)
    sizes[[1, 8]] = 0
    left = sizes > 0
    hidden = launch(q, k, v, ends, ends, sizes=sizes)
    gone = launch(q, k[left], v[left], ends, starts(3, 5))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(hidden, gone, strict=True))
    result, logsum = launch(q, k, v, ends, ends, sizes=torch.zeros(10))
    assert not result.any() and bool((logsum == -math.inf).all())


@pytest.mark.parametrize("threshold", [1, 8, 15])
def test_rescaling_may_wait_and_the_result_is_the_same(threshold: int) -> None:
    """Scores that rise from tile to tile, by more than the threshold and by less. The factors are powers of two: only
    the difference of score and reference rounds otherwise, by 2^-24 of at most 64."""
    q, k, v, ends, other = scene((16,), (200,))
    k = k.abs() * torch.linspace(0.1, 12, 200)[:, None, None]
    q = q.abs()
    prompt, late = (launch(q, k, v, ends, other, method=Method(threshold=one)) for one in (0, threshold))
    assert all(torch.allclose(one, two, rtol=0, atol=64 * 2.0**-22) for one, two in zip(prompt, late, strict=True))


def test_queries_that_see_nothing_give_zeros_and_the_rest_align_at_their_ends() -> None:
    q, k, v, rows, columns = scene((5,), (3,))
    result, logsum = launch(q, k, v, rows, columns, causal=True)
    assert not result[:2].any() and bool((logsum[:2] == -math.inf).all())
    assert torch.allclose(result[2], v[0]) and bool(logsum[2:].isfinite().all())


def test_costs_of_causal_attention_count_what_is_seen() -> None:
    for rows, columns in (((5, 3), (5, 3)), ((5, 2), (3, 6)), ((0, 4), (2, 0))):
        seen = sum(int(torch.ones(n, m).tril(m - n).sum()) for n, m in zip(rows, columns, strict=True))
        cost = ATTEND.cost(*scene(rows, columns), None, True, Method())
        assert cost.flops == 4 * seen * 2 * 12


@pytest.mark.parametrize("run", [attend, launch], ids=["reference", "kernel"])
def test_heads_of_a_group_are_what_torch_computes_with_grouped_queries(run: object) -> None:
    _, k, v, ends, _ = scene()
    q = torch.randn(len(k), 6, 12, generator=torch.Generator().manual_seed(9))
    result, _ = run(q, k, v, ends, ends, causal=True)  # type: ignore[operator]
    for first, last in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        alone = [one[first:last].transpose(0, 1)[None] for one in (q, k, v)]
        wanted = scaled_dot_product_attention(*alone, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
        assert torch.allclose(result[first:last], wanted, atol=1e-5)
    with pytest.raises(UsageError, match="5 heads of queries for 2 of keys"):
        attend(q[:, :5], k, v, ends, ends)

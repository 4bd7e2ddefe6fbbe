"""Block-sparse attention: full where every block is named, causal by powers of two, and what centroids give back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.block_patterns import Pattern, pack, power_of_two, selected, summarise
from edgekit.runtimes.kernels.sparse_attention import SPARSE_ATTENTION, attend

STARTS = torch.tensor([[0, 7, 7, 30, 41]], dtype=torch.int32)


def scene(length: int = 37, tokens: int = 41) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((length, 6), (tokens, 6), (tokens, 5))
    queries, keys, values = (torch.randn(1, *size, generator=generator) for size in sizes)
    return queries, keys, values


def launch(
    queries: Tensor, keys: Tensor, values: Tensor, pattern: Pattern, causal: bool = False, compensate: bool = False
) -> Tensor:
    means = [summarise(one, pattern.starts) for one in (keys, values)] if compensate else [None, None]
    layout = pattern.starts, pattern.offsets, pattern.columns
    found = SPARSE_ATTENTION.launch(queries, keys, values, *layout, *means, pattern.block, causal)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_where_every_block_is_named_it_is_full_attention(compensate: bool, block: int) -> None:
    q, k, v = scene(length=70)
    pattern = pack(torch.ones(1, -(-70 // block), 4, dtype=torch.bool), STARTS, block)
    found = launch(q, k, v, pattern, compensate=compensate)
    assert torch.allclose(found, scaled_dot_product_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize(("block", "length"), [(16, 90), (48, 200), (64, 270)])
def test_powers_of_two_are_causal_attention_with_a_mask(block: int, length: int) -> None:
    q, k, v = scene(length, length)
    pattern = power_of_two(1, length, block, recent=1)
    chosen = selected(pattern.starts, pattern.offsets, pattern.columns)
    mask = chosen.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :length, :length].tril()
    assert mask.sum() < torch.ones(length, length).tril().sum()
    found = launch(q, k, v, pattern, causal=True)
    assert torch.allclose(found, scaled_dot_product_attention(q, k, v, attn_mask=mask), atol=1e-5)


def test_where_the_tokens_of_a_block_are_alike_centroids_lose_nothing() -> None:
    q, k, v = scene()
    for first, last in ((0, 7), (7, 30), (30, 41)):
        k[:, first:last], v[:, first:last] = k[:, first : first + 1], v[:, first : first + 1]
    full = scaled_dot_product_attention(q, k, v)
    for named in ([0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]):
        pattern = pack(torch.tensor(named, dtype=torch.bool).expand(1, 3, 4), STARTS, 16)
        assert torch.allclose(launch(q, k, v, pattern, compensate=True), full, atol=1e-5)
    dropped = launch(q, k, v, pattern)
    assert (dropped - full).abs().max() > 0.1


def test_rows_that_name_nothing_are_zero() -> None:
    q, k, v = scene()
    found = launch(q, k, v, pack(torch.zeros(1, 3, 4, dtype=torch.bool), STARTS, 16))
    assert torch.equal(found, torch.zeros_like(found))


def test_what_cannot_be_is_refused() -> None:
    q, k, v = scene()
    everything = torch.ones(1, 3, 4, dtype=torch.bool)
    with pytest.raises(UsageError, match="centroids look ahead"):
        attend(q, k, v, pack(everything, STARTS, 16), causal=True, compensate=True)
    with pytest.raises(UsageError, match="got 6, 5 and blocks of 40, allowed: 128, 128, multiples of 16"):
        launch(q, k, v, pack(everything, STARTS, 40))

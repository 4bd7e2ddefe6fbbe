"""Attention among sorted tokens: nothing moves, everything is full attention, and less is still near."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.block_patterns import selected
from edgekit.runtimes.kernels.semantic_attention import attend_by_meaning, by_meaning
from edgekit.runtimes.kernels.sparse_attention import attend


def scene(length: int = 150, groups: int = 2, spread: float = 0.2) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens about 6 topics, in no order; queries about the topics of keys."""
    generator = torch.Generator().manual_seed(0)
    topics, meanings = (torch.randn(6, 8, generator=generator) for _ in range(2))
    queries, keys = (torch.randint(6, (groups, length), generator=generator) for _ in range(2))
    noise = [spread * torch.randn(groups, length, 8, generator=generator) for _ in range(3)]
    return 2 * topics[queries] + noise[0], topics[keys] + noise[1], meanings[keys] + noise[2]


def test_orders_are_permutations_and_clusters_are_runs() -> None:
    queries, keys, _ = scene()
    rows, columns, pattern = by_meaning(queries, keys, 6, 0.5, 16)
    for order in (rows, columns):
        assert torch.equal(order.sort(1).values, torch.arange(150).expand(2, -1))
    assert pattern.starts[:, 0].tolist() == [0, 0] and pattern.starts[:, -1].tolist() == [150, 150]
    assert pattern.offsets.shape == (2, 11) and int(pattern.offsets[-1, -1]) == len(pattern.columns)


def test_the_whole_mass_is_full_attention_in_the_old_order() -> None:
    queries, keys, values = scene()
    found = attend_by_meaning(queries, keys, values, 6, mass=1.0, block=16)
    assert torch.allclose(found, scaled_dot_product_attention(queries, keys, values), atol=1e-5)


def test_more_mass_names_more_blocks_and_comes_nearer() -> None:
    queries, keys, values = scene()
    full, counts, errors = scaled_dot_product_attention(queries, keys, values), [], []
    for mass in (0.1, 0.6, 0.95, 1.0):
        *_, pattern = by_meaning(queries, keys, 6, mass, 16)
        counts.append(len(pattern.columns))
        errors.append(float((attend_by_meaning(queries, keys, values, 6, mass, 16) - full).square().mean()))
    assert counts == sorted(counts) and counts[0] < counts[-1]
    assert errors == sorted(errors, reverse=True)
    named = selected(pattern.starts, pattern.offsets, pattern.columns)
    assert bool((named.sum(2) >= 1).all())


def test_centroids_bring_back_most_of_what_skipped_blocks_held() -> None:
    queries, keys, values = scene()
    rows, columns, pattern = by_meaning(queries, keys, 6, 0.5, 16)
    sorted_ = [one.gather(1, order[:, :, None].expand_as(one))
               for one, order in ((queries, rows), (keys, columns), (values, columns))]  # fmt: skip
    full = scaled_dot_product_attention(*sorted_)
    dropped, kept = ((attend(*sorted_, pattern, compensate=one) - full).square().mean() for one in (False, True))
    assert kept < dropped / 2


@pytest.mark.parametrize("mass", [0.0, -0.1, 1.1, float("nan")])
def test_a_mass_that_none_holds_is_refused(mass: float) -> None:
    queries, keys, _ = scene(20)
    with pytest.raises(UsageError, match=r"in \(0, 1\], got"):
        by_meaning(queries, keys, 3, mass)


def test_fewer_tokens_than_clusters_and_none_at_all() -> None:
    queries, keys, values = scene(3)
    found = attend_by_meaning(queries, keys, values, 10, mass=1.0, block=16)
    assert torch.allclose(found, scaled_dot_product_attention(queries, keys, values), atol=1e-5)
    assert attend_by_meaning(queries[:, :0], keys, values, 2).shape == (2, 0, 8)
    assert attend_by_meaning(queries[:0], keys[:0], values[:0], 2).shape == (0, 3, 8)

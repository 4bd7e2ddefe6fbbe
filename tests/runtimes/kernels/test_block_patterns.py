"""Patterns of blocks: rows in and out of compression, distances at powers of two, means."""

from __future__ import annotations

import pytest
import torch

from edgekit.runtimes.kernels.block_patterns import pack, power_of_two, selected, summarise


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (2, 0, 3), (0, 4, 3), (2, 3, 0)])
def test_packing_keeps_what_was_chosen(shape: tuple[int, int, int]) -> None:
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    pattern = pack(chosen, torch.zeros(shape[0], shape[2] + 1, dtype=torch.int32), 16)
    assert pattern.offsets.shape == (shape[0], shape[1] + 1) and pattern.columns.dtype == torch.int32
    assert torch.equal(selected(pattern.starts, pattern.offsets, pattern.columns), chosen)


def test_rows_see_the_recent_blocks_and_those_at_powers_of_two() -> None:
    pattern = power_of_two(2, 20 * 16 - 3, 16, recent=4)
    (row, other) = selected(pattern.starts, pattern.offsets, pattern.columns)[:, 19]
    assert row.nonzero().flatten().tolist() == [19 - 16, 19 - 8, 19 - 4, 19 - 3, 19 - 2, 19 - 1, 19]
    assert torch.equal(row, other) and pattern.starts[0].tolist() == [*range(0, 320, 16), 317]


def test_each_layer_doubles_what_is_seen_without_a_gap() -> None:
    pattern = power_of_two(1, 64, 1, recent=1)
    once = selected(pattern.starts, pattern.offsets, pattern.columns)[0]
    assert int(once.sum(1).max()) == 1 + 6  # of 64 blocks: itself, and one for each power below 64
    seen = torch.eye(64, dtype=torch.bool)
    for layers in range(1, 7):
        seen = (seen.float() @ once.float()) > 0
        assert seen[63, 64 - 2**layers :].all()
        assert [bool(seen[63, 63 - ago]) for ago in range(64)] == [ago.bit_count() <= layers for ago in range(64)]


def test_means_are_of_each_block_and_zero_of_none() -> None:
    tokens = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    starts = torch.tensor([[0, 4, 4, 9], [0, 0, 1, 9]], dtype=torch.int32)
    means = summarise(tokens, starts)
    wanted = [[tokens[0, :4].mean(0), torch.zeros(3), tokens[0, 4:].mean(0)],
              [torch.zeros(3), tokens[1, 0], tokens[1, 1:].mean(0)]]  # fmt: skip
    assert torch.allclose(means, torch.stack([torch.stack(one) for one in wanted]), atol=1e-6)

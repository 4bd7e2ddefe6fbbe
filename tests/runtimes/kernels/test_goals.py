"""The peers of the goals compute what the kernels compute."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from edgekit.runtimes.kernels import goals
from edgekit.runtimes.kernels.goals import key_mask, packed, pad
from edgekit.runtimes.kernels.ragged_attention import attend
from edgekit.runtimes.kernels.timing import Rates

CPU = torch.device("cpu")


def test_padded_attention_of_torch_is_attention_over_the_ragged_batch() -> None:
    lengths = [5, 12, 1]
    q, k, v, starts = packed(lengths, 3, 16, CPU)
    ours, _ = attend(q, k, v, starts, starts)
    padded = [pad(one, lengths) for one in (q, k, v)]
    assert padded[0].shape == (3, 3, 12, 16)
    theirs = scaled_dot_product_attention(*padded, attn_mask=key_mask(lengths, CPU)).transpose(1, 2)
    kept = torch.cat([theirs[row, :length] for row, length in enumerate(lengths)])
    # Both round weights and results to bf16, 2^-8 each, of values below 4.
    assert bool(((ours.float() - kept.float()).abs() <= 2 * 2.0**-8 * 4).all())


def test_a_batch_of_one_length_needs_no_mask() -> None:
    q, k, v, starts = packed([7, 7], 2, 8, CPU)
    ours, _ = attend(q, k, v, starts, starts)
    theirs = scaled_dot_product_attention(*(pad(one, [7, 7]) for one in (q, k, v))).transpose(1, 2).flatten(0, 1)
    assert bool(((ours.float() - theirs.float()).abs() <= 2 * 2.0**-8 * 4).all())


@pytest.mark.slow
def test_each_goal_is_a_ratio_of_times_or_of_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lap lasts 2 ms here, and nothing is launched: what is left are the bounds."""
    monkeypatch.setattr(goals, "median_ms", lambda action, device: 2.0)
    found = {one.what: one for one in goals.measure_goals(CPU, Rates(4000.0, 800.0, 1600.0))}
    assert [one.wanted for one in found.values()] == [0.8, 0.8, 0.7, 0.7, 0.7, 0.9, 1.0, 5.0]
    peers = [one for one in found.values() if "torch's time" in one.what]
    assert len(peers) == 3 and all(one.reached == 1.0 for one in peers)
    # 14336 x 4096 weights of four bits and a scale for 128 of them are 30 MB: 8 us at 4 TB/s, of 2 ms.
    assert found["W4A16 with 1 rows, of its bound"].reached == pytest.approx(0.0038, abs=2e-4)

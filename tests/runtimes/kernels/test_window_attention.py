"""Window and far past under one normalisation: full attention at one end, its series at the other, always means."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.window_attention import WINDOW_ATTENTION, attend


def scene(length: int, width: int = 6, narrow: int = 4, outputs: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(length)
    widths = (width, width, narrow, narrow, outputs)
    return tuple(torch.randn(1, 2, length, one, generator=generator) for one in widths)


def full(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)


@pytest.mark.parametrize("length", [1, 16, 33])
def test_a_window_that_covers_the_text_is_full_attention(length: int) -> None:
    q, k, f, g, v = scene(length)
    for window in (length, length + 1, 10**12):
        assert torch.allclose(WINDOW_ATTENTION.launch(q, k, f, g, v, window), full(q, k, v), atol=1e-5)


def test_a_short_window_is_near_full_attention_while_scores_are_small() -> None:
    q, k, _, _, v = scene(40)
    q, k = 0.5 * q, 0.5 * k
    x = float((q @ k.transpose(2, 3)).abs().max()) / math.sqrt(6)
    remainder = x**3 / 6 * math.exp(x)  # Lagrange's of the series, of each far weight
    assert remainder < 0.6
    error = (WINDOW_ATTENTION.launch(q, k, q, k, v, 3) - full(q, k, v)).abs().max()
    # Each weight of at least exp(-x) is off by `remainder`, in the sum of values and in that of weights.
    assert error < 2 * remainder * math.exp(x) * v.abs().max()
    smaller = (WINDOW_ATTENTION.launch(q / 4, k, q / 4, k, v, 3) - full(q / 4, k, v)).abs().max()
    assert smaller < error / 16  # the third order: 4^3 of it, less what the next orders had


@pytest.mark.parametrize("window", [1, 5, 16, 17, 31])
def test_results_are_weighted_means_of_what_came_before(window: int) -> None:
    q, k, f, g, v = scene(50)
    ones = WINDOW_ATTENTION.launch(q, k, 3 * f, g, torch.ones_like(v), window)
    assert torch.allclose(ones, torch.ones_like(ones), atol=1e-5)
    v[:, :, 40:] = 1e9
    before = WINDOW_ATTENTION.launch(q, k, f, g, v, window)[:, :, :40]
    assert before.abs().max() <= v[:, :, :40].abs().max() * (1 + 1e-5)


def test_with_features_of_nothing_the_far_past_counts_evenly() -> None:
    q, k, f, g, v = scene(30)
    out = WINDOW_ATTENTION.launch(0 * q, k, 0 * f, g, v, 7)
    means = v.cumsum(2) / torch.arange(1, 31)[:, None]
    assert torch.allclose(out, means, atol=1e-5)


def test_scores_far_below_zero_leave_the_far_past_alone() -> None:
    q, k, f, g, v = scene(30)
    out = WINDOW_ATTENTION.launch(100 + 0 * q, -100 + 0 * k, 0 * f, g, v, 4)
    means = v[:, :, :26].cumsum(2) / torch.arange(1, 27)[:, None]
    assert torch.allclose(out[:, :, 4:], means, atol=1e-5)
    assert torch.allclose(out[:, :, 0], v[:, :, 0], atol=1e-5)


def test_what_the_kernel_does_not_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="at least the token itself, got 0"):
        attend(*scene(3), window=0)  # type: ignore[misc]
    with pytest.raises(UsageError, match="keys are 6 and 17 wide, allowed: 128 and 16"):
        WINDOW_ATTENTION.launch(*scene(3, narrow=17), 2)

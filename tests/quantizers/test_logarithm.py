from __future__ import annotations

import math

import pytest
import torch

from edgekit.quantizers.logarithm import best_base, decode, encode


@pytest.mark.parametrize("base", [1, 2, 4])
def test_values_err_by_half_a_step_of_the_logarithm(base: int) -> None:
    probabilities = torch.exp2(-torch.rand(4096, generator=torch.Generator().manual_seed(0)) * (63 / base))
    ratio = decode(encode(probabilities, 6, base=base), base=base) / probabilities
    assert (ratio.log2().abs() <= 0.5 / base + 1e-4).all()


def test_zero_and_one_take_the_ends() -> None:
    assert encode(torch.tensor([0.0, 1.0, 2.0]), 4).tolist() == [15, 0, 0]
    assert decode(torch.tensor([1]))[0] == pytest.approx(1 / math.sqrt(2))


def test_small_probabilities_keep_more_than_on_a_uniform_grid() -> None:
    scores = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    probabilities = torch.softmax(scores, -1)
    values = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    uniform = torch.round(probabilities * 31) / 31
    logarithmic = decode(encode(probabilities, 5))
    wanted = probabilities @ values
    assert (logarithmic @ values - wanted).norm() < 0.5 * (uniform @ values - wanted).norm()


def test_the_base_is_fine_for_near_equal_probabilities_and_coarse_for_spread_ones() -> None:
    values = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    even = torch.softmax(0.1 * torch.randn(64, 50, generator=torch.Generator().manual_seed(0)), -1)
    assert best_base(even, values, 5) == 4
    assert best_base(even, values, 3) == 1

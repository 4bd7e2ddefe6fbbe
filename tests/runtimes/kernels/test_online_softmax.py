"""The polynomials for 2^x, and what the online softmax may skip."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.online_softmax import ERRORS, Method, power_of_two, power_of_two_reference
from edgekit.runtimes.kernels.tiles import narrow

# A jitted function under test needs a program that stores what it gives.


@triton.jit
def _power_kernel(x, y, count, DEGREE: tl.constexpr):  # noqa: N803
    places = tl.arange(0, 4096)
    value = tl.load(x + places, mask=places < count, other=0.0)
    tl.store(y + places, power_of_two(value, DEGREE), mask=places < count)


@triton.jit
def _narrow_kernel(x, y, count):
    places = tl.arange(0, 4096)
    value = tl.load(x + places, mask=places < count, other=0.0)
    tl.store(y + places, narrow(value, y.dtype.element_ty), mask=places < count)


def power(x: torch.Tensor, degree: int) -> torch.Tensor:
    y = torch.empty_like(x)
    _power_kernel[(1,)](x, y, len(x), DEGREE=degree)
    return y


@pytest.mark.parametrize("degree", list(ERRORS))
def test_powers_of_two_err_by_no_more_than_is_stated(degree: int) -> None:
    x = torch.cat([torch.linspace(-126, 15, 3000), torch.rand(1000), torch.arange(-60, 16)]).float()
    exact = torch.exp2(x.double())
    for y in (power(x, degree), power_of_two_reference(x, degree)):
        assert float((y.double() / exact - 1).abs().max()) <= ERRORS[degree]


@pytest.mark.parametrize("degree", [3, 5])
def test_polynomials_end_at_zero_below_the_normal_numbers(degree: int) -> None:
    x = torch.tensor([-126.5, -150.0, -1e30, float("-inf")])
    assert power(x, degree).tolist() == power_of_two_reference(x, degree).tolist() == [0.0] * 4


def test_whole_powers_scale_a_polynomial_exactly() -> None:
    x = torch.rand(500).mul(1024).round() / 1024
    assert torch.equal(power(x - 40, 3) * 2.0**40, power(x, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrowing_rounds_to_nearest_as_torch_does(dtype: torch.dtype) -> None:
    ties = 1 + torch.arange(64) / 2**12 + torch.arange(64) / 2**8
    x = torch.cat([ties, -ties, torch.randn(2000, generator=torch.Generator().manual_seed(0)), torch.zeros(1)])
    y = torch.empty(len(x), dtype=dtype)
    _narrow_kernel[(1,)](x, y, len(x))
    assert torch.equal(y, x.to(dtype))


def test_a_method_that_would_overflow_or_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="threshold is 16, allowed: 0 to 15"):
        Method(threshold=16)
    with pytest.raises(UsageError, match="degree is 4, allowed: 0, 3, 5"):
        Method(degree=4)

"""The rational activation beside its definition in powers, autograd and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.runtimes.kernels.rational import BACKWARD, BACKWARD_CONFIGS, FORWARD, TILES, rational


def definition(x: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """Powers and sums as the formula has them, differentiated by autograd."""
    groups = x.reshape(len(x), len(upper), -1)
    above = sum(upper[:, power, None] * groups**power for power in range(6))
    below = sum(lower[:, power - 1, None] * groups**power for power in range(1, 5))
    assert isinstance(above, Tensor) and isinstance(below, Tensor)
    return (above / (1 + below.abs())).reshape(x.shape)


def scene(rows: int, channels: int, groups: int, seed: int = 0) -> tuple[Tensor, ...]:
    """float64 leaves x, upper, lower, and a gradient; no x so near to a root of Q that a step crosses it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    upper = torch.randn(groups, 6, generator=generator, dtype=torch.float64)
    lower = torch.randn(groups, 4, generator=generator, dtype=torch.float64)
    below = sum(lower[:, power - 1, None] * x.reshape(rows, groups, -1) ** power for power in range(1, 5))
    assert isinstance(below, Tensor)
    x = torch.where(below.reshape(x.shape).abs() > 1e-2, x, torch.ones_like(x))
    gradient = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), upper.requires_grad_(), lower.requires_grad_(), gradient


def test_values_are_those_of_the_definition() -> None:
    x, upper, lower, _ = scene(11, 12, 4)
    assert torch.allclose(rational(x, upper, lower), definition(x, upper, lower), rtol=1e-12, atol=1e-12)


def test_gradients_of_the_reference_are_those_of_autograd() -> None:
    x, upper, lower, gradient = scene(11, 12, 4, seed=1)
    wanted = torch.autograd.grad(definition(x, upper, lower), (x, upper, lower), gradient)
    through = torch.autograd.grad(FORWARD.reference(x, upper, lower), (x, upper, lower), gradient)
    for got, also, want in zip(BACKWARD.reference(x, upper, lower, gradient), through, wanted, strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)
        assert torch.allclose(also, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 3])
def test_gradients_are_those_of_finite_differences(groups: int) -> None:
    x, upper, lower, _ = scene(4, 6, groups, seed=2)
    assert torch.autograd.gradcheck(rational, (x, upper, lower))


def magnitudes(x: Tensor, upper: Tensor, lower: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """For dx, da and db the sums of the magnitudes of all terms, times what a rounding of Q is in D."""
    groups = len(upper)
    v, g = x.abs().reshape(len(x), groups, -1), gradient.abs().reshape(len(x), groups, -1)
    a, b = upper.abs().unbind(1), lower.abs().unbind(1)
    whole = 1 + sum(lower[:, n, None] * x.reshape(v.shape) ** (n + 1) for n in range(4)).abs()  # type: ignore[union-attr]
    p = sum(a[n][:, None] * v**n for n in range(6))
    p_slope = sum(n * a[n][:, None] * v ** (n - 1) for n in range(1, 6))
    q = 1 + sum(b[n][:, None] * v ** (n + 1) for n in range(4))
    q_slope = sum((n + 1) * b[n][:, None] * v**n for n in range(4))
    term = g / whole * (q / whole)
    return (
        (term * (p_slope + p * q_slope / whole)).reshape(x.shape),
        torch.stack([(term * v**n).sum((0, 2)) for n in range(6)], 1),
        torch.stack([(term * p / whole * v ** (n + 1)).sum((0, 2)) for n in range(4)], 1),
    )


def test_the_kernels_gradients_are_those_of_autograd_in_float64() -> None:
    narrow = [value.detach().float() for value in scene(90, 30, 2, seed=3)]
    x, upper, lower, gradient = (value.double().requires_grad_() for value in narrow)
    wanted = torch.autograd.grad(definition(x, upper, lower), (x, upper, lower), gradient)
    # Roundings that a term meets: 10 in P, 2 x 9 in D, 5 to join them, and 20 additions (of tiles, lanes, programs).
    bounds = (53 * 2.0**-24 * value for value in magnitudes(x, upper, lower, gradient))
    for got, want, bound in zip(BACKWARD.launch(*narrow), wanted, bounds, strict=True):
        assert ((got.double() - want).abs() <= bound).all()


def test_more_tiles_than_programs_are_all_counted() -> None:
    """Each element adds 1 to da_0 where Q is 0 and its gradient 1, so that the sum is exact."""
    width = BACKWARD_CONFIGS[0].constants["BLOCK"] * (TILES + 1) + 3
    ones = torch.ones(2, width)
    _, upper, _ = BACKWARD.launch(ones, torch.ones(1, 6), torch.zeros(1, 4), ones)
    assert upper.tolist() == [[2.0 * width] * 6]


def test_the_same_bits_come_at_every_run() -> None:
    arguments = tuple(value.detach().float() for value in scene(40, 24, 3, seed=4))
    for one, other in zip(BACKWARD.launch(*arguments), BACKWARD.launch(*arguments), strict=True):
        assert torch.equal(one, other)


def test_each_group_of_channels_has_its_own_coefficients() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    upper = torch.zeros(2, 6)
    upper[0, 1], upper[1, 2] = 1, 1  # x, and x^2
    lower = torch.zeros(2, 4)
    lower[1, 0] = -1  # 1 + |-x|
    assert FORWARD.launch(x, upper, lower).tolist() == [[1.0, 2.0, pytest.approx(9 / 4), pytest.approx(16 / 5)]]
    *_, change = BACKWARD.launch(x, upper, lower, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert change[1].tolist() == [0.0] * 4


def test_any_shape_with_channels_last_is_taken_and_kept() -> None:
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(5), requires_grad=True)
    y = rational(x, torch.ones(4, 6), torch.zeros(4, 4))
    y.sum().backward()
    assert y.shape == x.shape and x.grad is not None and x.grad.shape == x.shape


@pytest.mark.parametrize(("upper", "lower"), [((3, 6), (3, 4)), ((2, 5), (2, 4)), ((2, 6), (1, 4)), ((0, 6), (0, 4))])
def test_coefficients_that_do_not_fit_are_refused(upper: tuple[int, int], lower: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="allowed \\[G, 6\\] and \\[G, 4\\]"):
        rational(torch.ones(2, 8), torch.ones(upper), torch.ones(lower))

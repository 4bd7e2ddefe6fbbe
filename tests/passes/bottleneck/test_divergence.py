from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from edgekit.passes.bottleneck.divergence import (
    bottleneck_loss,
    cauchy_schwarz_divergence,
    cauchy_schwarz_information,
    conditional_divergence,
    gram,
    kernel_width,
)


def _rows(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _kernel(a, b, width):
    return math.exp(-sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist(), strict=True)) / (2 * width**2))


def _plain_divergence(x, y, width):
    def mean(first, second):
        return sum(_kernel(a, b, width) for a in first for b in second) / (len(first) * len(second))

    return math.log(mean(x, x)) + math.log(mean(y, y)) - 2 * math.log(mean(x, y))


def _plain_conditional(x, y, predicted, x_width, y_width):
    count = len(x)

    def overlap(first, second):
        total = 0.0
        for j in range(count):
            density = sum(_kernel(x[j], x[i], x_width) for i in range(count))
            joint = sum(_kernel(x[j], x[i], x_width) * _kernel(first[j], second[i], y_width) for i in range(count))
            total += joint / density**2
        return math.log(total)

    return overlap(y, y) + overlap(predicted, predicted) - 2 * overlap(predicted, y)


def _plain_information(x, t, x_width, t_width):
    """As a divergence of the N pairs from the N^2 combinations, over every pair of them."""
    count = len(x)
    joint = [(x[i], t[i]) for i in range(count)]
    apart = [(x[i], t[j]) for i in range(count) for j in range(count)]

    def mean(first, second):
        total = sum(_kernel(a[0], b[0], x_width) * _kernel(a[1], b[1], t_width) for a in first for b in second)
        return total / (len(first) * len(second))

    return math.log(mean(joint, joint)) + math.log(mean(apart, apart)) - 2 * math.log(mean(joint, apart))


@pytest.mark.parametrize(("rows", "columns"), [(2, 1), (5, 3), (7, 2)])
def test_estimates_match_plain_loops(rows, columns):
    x, y, predicted, t = _rows(rows, columns, 0), _rows(rows, 2, 1), _rows(rows, 2, 2), _rows(rows, 4, 3)
    other = _rows(rows + 3, columns, 4)
    assert cauchy_schwarz_divergence(x, other, width=0.8).item() == pytest.approx(
        _plain_divergence(x, other, 0.8), abs=1e-12
    )
    got = conditional_divergence(x, y, predicted, x_width=1.1, y_width=0.7)
    assert got.item() == pytest.approx(_plain_conditional(x, y, predicted, 1.1, 0.7), abs=1e-12)
    got = cauchy_schwarz_information(x, t, x_width=0.9, t_width=1.3)
    assert got.item() == pytest.approx(_plain_information(x, t, 0.9, 1.3), abs=1e-12)


def test_divergence_of_gaussians_is_the_closed_form():
    """N(0, 1) and N(m, 1) under a kernel of width w: all three overlaps are Gaussian in m, of variance 2 + w^2.

    D = m^2 / (2 + w^2). 2,000 samples of each leave a standard error below 0.03 (the overlap's relative error is
    about 1 / sqrt(2000)).
    """
    for shift in (0.5, 1.0, 2.0):
        x, y = _rows(2000, 1, 5), _rows(2000, 1, 6) + shift
        got = cauchy_schwarz_divergence(x, y, width=0.3).item()
        assert got == pytest.approx(shift**2 / (2 + 0.3**2), abs=0.09 * max(1.0, shift))


def test_equal_samples_diverge_by_nothing_and_estimates_are_never_negative():
    x, y = _rows(30, 3, 7), _rows(30, 2, 8)
    assert cauchy_schwarz_divergence(x, x).item() == pytest.approx(0.0, abs=1e-12)
    assert conditional_divergence(x, y, y).item() == pytest.approx(0.0, abs=1e-12)
    assert cauchy_schwarz_information(x, torch.ones(30, 2, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-12)
    for seed in range(20):
        assert cauchy_schwarz_divergence(_rows(9, 2, seed), _rows(6, 2, 100 + seed)).item() >= 0
        assert cauchy_schwarz_information(_rows(9, 2, seed), _rows(9, 3, 200 + seed)).item() >= 0


def test_information_grows_with_dependence():
    x, noise = _rows(300, 1, 9), _rows(300, 1, 10)
    kept = [cauchy_schwarz_information(x, r * x + math.sqrt(1 - r * r) * noise).item() for r in (0.0, 0.5, 0.9, 1.0)]
    assert kept == sorted(kept)
    assert kept[0] < 0.02 < 0.2 < kept[-1]


def test_prediction_term_grows_with_the_error():
    x = _rows(80, 2, 11)
    y = x.sum(1, keepdim=True)
    errors = [
        conditional_divergence(x, y, y + noise * _rows(80, 1, 12), x_width=0.5).item() for noise in (0, 0.3, 1, 3)
    ]
    assert errors == sorted(errors)
    assert errors[-1] > 1.0


def test_gradients_are_those_of_finite_differences():
    x, y = _rows(6, 2, 13), _rows(6, 1, 14)
    predicted, t = _rows(6, 1, 15).requires_grad_(), _rows(6, 3, 16).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: conditional_divergence(x, y, p, x_width=1.0, y_width=0.8), (predicted,))
    assert torch.autograd.gradcheck(lambda v: cauchy_schwarz_information(x, v, x_width=1.0, t_width=1.2), (t,))
    assert torch.autograd.gradcheck(lambda p: cauchy_schwarz_divergence(p, y, width=0.9), (predicted,))


def test_far_and_equal_rows_keep_value_and_gradient_finite():
    x = torch.zeros(4, 2)
    far = (torch.arange(4.0)[:, None] * 1e6).requires_grad_()
    loss = bottleneck_loss(x, far, torch.ones(4, 1), far, beta=0.1)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(far.grad).all()
    assert kernel_width(x).item() == 1.0
    assert torch.equal(gram(x), torch.ones(4, 4))


def test_training_on_the_loss_fits_a_line_under_outliers_nearer_than_the_squared_error():
    """A tenth of the targets lie far off: the squared error follows them, the kernel does not see them."""
    x = _rows(120, 1, 17)
    y = 2 * x
    y[::10] += 12.0

    def slope_and_offset(loss):
        torch.manual_seed(0)
        line = nn.Linear(1, 1).double()
        steps = torch.optim.Adam(line.parameters(), lr=0.05)
        for _ in range(200):
            steps.zero_grad()
            loss(line(x)).backward()
            steps.step()
        return line.weight.item(), line.bias.item()

    _, squared_offset = slope_and_offset(lambda guess: (guess - y).square().mean())
    slope, offset = slope_and_offset(lambda guess: conditional_divergence(x, y, guess, x_width=0.3))
    assert abs(squared_offset) > 1.0
    assert abs(slope - 2) < 0.15
    assert abs(offset) < 0.1

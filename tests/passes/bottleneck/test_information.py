from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma
from torch.nn.functional import one_hot

from edgekit.errors import DataError
from edgekit.passes.bottleneck.information import Received, count_neighbours, information_plane, mutual_information


def _normal(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9, 0.99])
def test_correlated_gaussians_give_the_closed_form(rho):
    """-log2(1 - rho^2) / 2, from 1,000 pairs at k = 3, the mean of four draws.

    One sample's term has a variance of at most rho^2 (the pointwise information) + 2 psi'(3) = 0.79 (the two counts):
    a standard error of 0.031 bits for the mean of four, and the tolerance is three of them. The clipping at zero adds
    at most 0.4 of a single draw's standard deviation, 0.02 bits, where the truth is zero.
    """
    estimates = []
    for seed in range(4):
        x = _normal(1000, 1, seed)
        y = rho * x + math.sqrt(1 - rho**2) * _normal(1000, 1, 100 + seed)
        estimates.append(mutual_information(x, y))
    assert np.mean(estimates) == pytest.approx(-math.log2(1 - rho**2) / 2, abs=3 * 0.031)


def test_an_invertible_map_of_either_side_changes_little():
    x = _normal(1000, 1, 1)
    y = 0.9 * x + math.sqrt(1 - 0.81) * _normal(1000, 1, 2)
    bent = mutual_information(torch.exp(x), y**3)
    assert bent == pytest.approx(-math.log2(1 - 0.81) / 2, abs=0.2)


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_discrete_and_deterministic_gives_the_entropy(classes):
    """psi is below log by 1 / 2n at a count of n, and appears three times: classes / N nats at most, plus the entropy
    of the empirical shares."""
    labels = torch.arange(1000) % classes
    assert mutual_information(labels, (labels * 7 + 3) % 97) == pytest.approx(math.log2(classes), abs=0.02)
    assert mutual_information(one_hot(labels, classes), labels, axes=classes) == pytest.approx(
        math.log2(classes), abs=0.03
    )


def test_mixed_variables_give_what_the_channel_lets_through():
    """A class sent as a level that noise never bridges, and one that is half erased to a constant."""
    labels = torch.arange(1200) % 4
    level = labels[:, None].double() + 0.05 * (torch.rand(1200, 1, generator=torch.Generator().manual_seed(3)) - 0.5)
    assert mutual_information(level, labels) == pytest.approx(2.0, abs=0.02)
    erased = torch.where(torch.arange(1200) // 4 % 2 == 0, labels + 1, 0)
    assert mutual_information(erased, labels) == pytest.approx(1.0, abs=0.02)


def test_many_independent_columns_share_nothing():
    """Axes fitted on the samples that are counted would find dependence here: 200 columns on 256 samples."""
    for seed in range(3):
        assert mutual_information(_normal(256, 200, seed), _normal(256, 300, 50 + seed)) < 0.12


def test_a_signal_in_few_axes_of_many_is_found():
    """Two Gaussian pairs of correlation 0.95 (3.36 bits together) inside 400 and 300 columns with a little noise."""
    hidden = _normal(1000, 2, 4)
    seen = 0.95 * hidden + math.sqrt(1 - 0.95**2) * _normal(1000, 2, 5)
    x = hidden @ _normal(2, 400, 6) + 0.05 * _normal(1000, 400, 7)
    y = seen @ _normal(2, 300, 8) + 0.05 * _normal(1000, 300, 9)
    found = mutual_information(x, y, axes=2)
    assert found == pytest.approx(-math.log2(1 - 0.95**2), abs=0.4)
    assert mutual_information(x, hidden + 3 * _normal(1000, 2, 10), axes=2) < found


def test_counting_matches_plain_loops():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (40, 2)).astype(float) + np.where(rng.random((40, 1)) < 0.5, rng.random((40, 2)), 0)
    y = np.round(rng.random((40, 1)), 1)

    def scaled(values):
        return (values - values.mean(0)) / values.std(0)

    def apart(values, i, j):
        return np.abs(scaled(values)[i] - scaled(values)[j]).max()

    total, count = 0.0, len(x)
    for i in range(count):
        both = sorted(max(apart(x, i, j), apart(y, i, j)) for j in range(count) if j != i)
        radius = both[2]
        if radius < 1e-9:
            inside = 1 + sum(distance < 1e-9 for distance in both)
            near_x, near_y = (sum(apart(v, i, j) < 1e-9 for j in range(count)) for v in (x, y))
        else:
            inside = 3
            near_x, near_y = (sum(apart(v, i, j) < radius - 1e-9 for j in range(count)) for v in (x, y))
        total += digamma(inside) + digamma(count) - digamma(near_x) - digamma(near_y)
    assert count_neighbours(x, y, 3) == pytest.approx(total / count, abs=1e-9)


def test_too_few_uneven_and_broken_samples_are_refused():
    good = _normal(20, 2, 11)
    broken = good.clone()
    broken[3, 1] = float("nan")
    for x, y in ((good[:7], good[:7]), (good, good[:19]), (broken, good), (good, broken)):
        with pytest.raises(DataError):
            mutual_information(x, y)


def test_plane_loses_information_as_the_step_grows():
    labels = torch.arange(400) % 4
    inputs = one_hot(labels, 4).double() @ _normal(4, 30, 12) * 2 + 0.3 * _normal(400, 30, 13)
    received = [
        Received("stem", rate, 100.0 / (rate + 1), (inputs / step).round() * step)
        for rate, step in enumerate((0.01, 1.0, 4.0, 16.0, 1e3))
    ]
    points = information_plane(inputs, labels, received)
    assert [(point.cut, point.rate, point.bits_sent) for point in points] == [
        ("stem", rate, 100.0 / (rate + 1)) for rate in range(5)
    ]
    assert points[0].i_ty == pytest.approx(2.0, abs=0.1)
    assert points[-1].i_ty == pytest.approx(0.0, abs=1e-9)
    assert points[-1].i_xt == pytest.approx(0.0, abs=1e-9)
    assert points[0].i_ty > points[3].i_ty
    assert points[0].i_xt > points[2].i_xt > points[-1].i_xt

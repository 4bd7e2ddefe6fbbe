from __future__ import annotations

import itertools

import pytest
import torch

from edgekit.quantizers.rounding import Moments, _error_flow, compensated_rows, damped_metric, round_rows


def loss(steps: torch.Tensor, targets: torch.Tensor, metric: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    error = (steps * scale[:, :, None]).double() - targets
    return torch.einsum("grk,gkl,grl->gr", error, metric, error)


def problem(groups: int, rows: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(groups, inputs, 3 * inputs, generator=generator, dtype=torch.float64)
    data[:, 1:] += 2 * data[:, :1]
    targets = torch.randn(groups, rows, inputs, generator=generator, dtype=torch.float64)
    scale = (targets.abs().amax(2) / 7).float()
    return targets, data @ data.transpose(1, 2) / data.shape[2], scale


def test_rounding_is_never_worse_than_nearest_and_close_to_the_best() -> None:
    targets, metric, scale = problem(2, 6, 5)
    free = torch.zeros_like(targets).float()
    got = loss(round_rows(targets, metric, scale, 7, free), targets, metric, scale)
    nearest = torch.clamp(torch.round(targets / scale[:, :, None]), -7, 7)
    floor = torch.floor(targets / scale[:, :, None])
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5)))
    best = torch.stack([loss(torch.clamp(floor + choice, -7, 7), targets, metric, scale) for choice in choices]).amin(0)
    assert (got <= loss(nearest, targets, metric, scale) + 1e-6).all()
    assert got.sum() <= 1.3 * best.sum()


def test_anchored_entries_keep_their_step() -> None:
    targets, metric, scale = problem(1, 4, 6)
    anchors = torch.zeros_like(targets).float()
    anchors[:, :, 2] = -7.0
    assert (round_rows(targets, metric, scale, 7, anchors)[:, :, 2] == -7).all()


def test_compensation_recovers_a_rescaled_input() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(1, 4, 4000, generator=generator)
    moments = Moments.zeros(1, 4)
    moments.add(exact, exact * 0.5)
    rows = torch.randn(1, 3, 4, generator=generator)
    torch.testing.assert_close(compensated_rows(rows, moments, 1e-9).float(), rows * 2, rtol=1e-4, atol=1e-4)


def test_a_dead_input_leaves_a_solvable_metric() -> None:
    moments = Moments.zeros(1, 3)
    moments.add(torch.zeros(1, 3, 10), torch.zeros(1, 3, 10))
    assert torch.linalg.cholesky(damped_metric(moments, 1.0)).isfinite().all()


@pytest.mark.parametrize("spread", [1.0, 3e3, 1e9])
def test_the_error_flow_is_the_factor_of_the_inverse_however_uneven_the_metric(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(1, 40, 12, generator=generator, dtype=torch.float64)
    samples[:, :, 3] *= spread
    metric = samples.transpose(1, 2) @ samples
    upper = _error_flow(metric)
    assert torch.equal(upper, upper.triu())
    product = (upper.transpose(1, 2) @ upper) @ metric
    # double precision through a condition number of about spread^2, met relative to each column's own scale
    scale = metric.diagonal(dim1=1, dim2=2).sqrt()
    assert torch.allclose(product * scale[:, :, None] / scale[:, None, :], torch.eye(12).double(), atol=1e-6)


def test_a_singular_metric_gets_the_ridge_that_it_lacks() -> None:
    row = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    upper = _error_flow(row.transpose(1, 2) @ row)
    assert torch.isfinite(upper).all()

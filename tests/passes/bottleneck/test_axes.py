"""Principal axes in the metric of a sensitivity, against what they are defined by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgekit.passes.bottleneck.axes import (
    apply_modes,
    output_gradients,
    principal_axes,
    principal_projection,
    second_moment,
    separable_axes,
)


def _moments(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, count, count, generator=generator, dtype=torch.float64)
    return first @ first.T + 0.1 * torch.eye(count), second @ second.T + 0.1 * torch.eye(count)


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_decoder_is_the_inverse_of_the_encoder(count: int) -> None:
    axes = principal_axes(*_moments(count))

    # Single precision times the condition of the metric's root, which the regularization keeps below ~100.
    assert torch.allclose(axes.decoder @ axes.encoder, torch.eye(count), atol=1e-4)


def test_components_are_uncorrelated_and_ordered_by_their_variance() -> None:
    covariance, sensitivity = _moments(9)
    axes = principal_axes(covariance, sensitivity)

    between = axes.encoder.double() @ covariance @ axes.encoder.double().T
    assert torch.allclose(between, torch.diag(axes.variances.double()), atol=1e-4 * float(between.max()))
    assert torch.equal(axes.variances, axes.variances.sort(descending=True).values)


def test_an_error_in_any_component_costs_the_same_in_the_metric() -> None:
    covariance, sensitivity = _moments(6)
    axes = principal_axes(covariance, sensitivity, regularization=0.0)

    metric = sensitivity / sensitivity.diagonal().mean()
    cost = axes.decoder.double().T @ metric @ axes.decoder.double()
    assert torch.allclose(cost, torch.eye(6, dtype=torch.float64), atol=1e-4)


def test_without_a_sensitivity_the_axes_are_those_of_the_covariance() -> None:
    covariance, _ = _moments(5)
    axes = principal_axes(covariance, regularization=0.0)

    assert torch.allclose(axes.encoder @ axes.encoder.T, torch.eye(5), atol=1e-5)
    assert torch.allclose(axes.variances.double(), torch.linalg.eigvalsh(covariance).flip(0), rtol=1e-4)


def test_a_direction_that_the_tail_ignores_comes_last() -> None:
    covariance = torch.diag(torch.tensor([100.0, 1.0, 1.0], dtype=torch.float64))
    sensitivity = torch.diag(torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))
    axes = principal_axes(covariance, sensitivity, regularization=1e-4)

    assert int(axes.encoder[2].abs().argmax()) == 0


def test_dead_features_give_finite_axes() -> None:
    axes = principal_axes(torch.zeros(4, 4), torch.zeros(4, 4))

    assert torch.isfinite(axes.encoder).all() and torch.isfinite(axes.decoder).all()
    assert torch.equal(axes.variances, torch.zeros(4))


def test_axes_are_the_same_each_time() -> None:
    first, second = (principal_axes(*_moments(8)) for _ in range(2))

    assert torch.equal(first.encoder, second.encoder)


def test_second_moment_matches_the_plain_sum() -> None:
    values = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for sample in values.double():
        for channel in range(3):
            for column in range(5):
                expected += torch.outer(sample[channel, :, column], sample[channel, :, column])

    assert torch.allclose(second_moment(values, 2), expected / (4 * 3 * 5))


def test_transform_along_all_modes_is_undone() -> None:
    generator = torch.Generator().manual_seed(2)
    features, gradients = torch.randn(2, 16, 6, 4, 3, generator=generator)
    axes = separable_axes(features, gradients, (1, 2, 3))

    components = apply_modes(features, [one.encoder for one in axes], (1, 2, 3))
    back = apply_modes(components, [one.decoder for one in axes], (1, 2, 3))
    assert torch.allclose(back, features, atol=1e-4)


def test_projected_gradients_estimate_the_sensitivity_of_a_linear_tail() -> None:
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(3))
    gradients = output_gradients(lambda values: [values @ weight.T], torch.zeros(20_000, 5), seed=0)

    exact = (weight.T @ weight).double()
    # A mean of n products of Gaussians: its standard error is below sqrt(2 / n) of the largest element, taken 5 times.
    error = 5 * (2 / 20_000) ** 0.5 * float(exact.diagonal().max())
    assert torch.allclose(second_moment(gradients, 1), exact, atol=error)


def test_a_projection_keeps_distances_of_the_metric_and_comes_back() -> None:
    points = _normal(300, 5, seed=9) @ _normal(5, 5, seed=10) + 3
    factor = _normal(5, 5, seed=11)
    metric = factor @ factor.T
    axes = principal_projection(points, 5, metric)
    coded = (points - axes.mean) @ axes.project
    assert torch.allclose(coded @ axes.restore + axes.mean, points)
    step = points[1:] - points[:-1]
    assert torch.allclose((coded[1:] - coded[:-1]).square().sum(1), ((step @ metric) * step).sum(1))
    covariance = coded.T @ coded / 300
    assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-8 * float(covariance.max()))
    assert (covariance.diagonal().diff() <= 0).all()


def test_a_projection_onto_few_axes_leaves_out_what_varies_least() -> None:
    points = _normal(300, 5, seed=12) * torch.tensor([9.0, 5.0, 3.0, 1.0, 0.1], dtype=torch.float64)
    axes = principal_projection(points, 3)
    assert (axes.project.shape, axes.restore.shape) == ((5, 3), (3, 5))
    back = (points - axes.mean) @ axes.project @ axes.restore + axes.mean
    missed = torch.linalg.eigvalsh((points - axes.mean).T @ (points - axes.mean))[:2].sum()
    torch.testing.assert_close((points - back).square().sum(), missed)


def test_directions_that_the_metric_does_not_see_come_back_as_the_mean() -> None:
    points = _normal(100, 4, seed=13)
    axes = principal_projection(points, 4, torch.diag(torch.tensor([1.0, 2.0, 0.0, 3.0], dtype=torch.float64)))
    back = (points - axes.mean) @ axes.project @ axes.restore + axes.mean
    torch.testing.assert_close(back[:, [0, 1, 3]], points[:, [0, 1, 3]])
    torch.testing.assert_close(back[:, 2], points.mean(0)[2].expand(100))

"""k-means end to end."""

from __future__ import annotations

import pytest
import torch

from edgekit.passes.bottleneck import codebooks
from edgekit.runtimes.kernels import lloyd
from edgekit.runtimes.kernels.kmeans import ASSIGN, UPDATE
from edgekit.runtimes.kernels.lloyd import assign, fit, update


def spread(points: torch.Tensor, centres: torch.Tensor, nearest: torch.Tensor) -> float:
    return float((points - centres[nearest.long()]).square().sum())


def test_each_round_brings_points_and_centres_nearer() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(400, 6, generator=generator)
    centres, seen = points[:12], []
    for _ in range(6):
        nearest = assign(points, centres)
        seen.append(spread(points, centres, nearest))
        centres = update(points, nearest, centres)
        seen.append(spread(points, centres, nearest))
    assert seen == sorted(seen, reverse=True) and seen[-1] < 0.8 * seen[0]


def test_separate_groups_are_found() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = 10 * torch.eye(5)
    points = truth[torch.arange(100) % 5] + 0.1 * torch.randn(100, 5, generator=generator)
    centres, nearest = fit(points, points[:5])
    assert nearest.tolist() == [row % 5 for row in range(100)]
    assert torch.allclose(centres, truth, atol=0.1)


@pytest.mark.parametrize("price", [0.0, 0.4])
def test_codebooks_fitted_by_the_kernels_are_those_of_the_references(
    price: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but interpreted. No point of these lies so near a border that float32 errs about it: labels are
    equal. A mean of n points is off by at most n ulps of the largest."""
    generator = torch.Generator().manual_seed(3)
    truth = 4 * torch.randn(12, 6, generator=generator)
    sizes = torch.arange(1, 13) * 3
    points = truth.repeat_interleave(sizes, 0) + 1.5 * torch.randn(int(sizes.sum()), 6, generator=generator)
    plain, labels = codebooks.kmeans(points, 9, seed=5, price=price)
    launched = []

    def assign_by_kernel(*arguments: torch.Tensor) -> torch.Tensor:
        launched.append(len(arguments))
        found = ASSIGN.launch(*arguments)
        assert isinstance(found, torch.Tensor)
        return found

    monkeypatch.setattr(lloyd, "assign", assign_by_kernel)
    monkeypatch.setattr(lloyd, "update", UPDATE.launch)
    by_kernel, same = codebooks.kmeans(points, 9, seed=5, price=price)
    assert len(launched) > 2 and set(launched) == {3}
    assert torch.equal(same, labels)
    allowed = 2.0**-24 * int(torch.bincount(labels).max()) * points.abs().max()
    assert bool(((by_kernel - plain).abs() <= allowed).all())


def test_a_codebook_of_a_fit_is_a_fixed_point_of_both() -> None:
    """One more round changes nothing, whoever runs it."""
    generator = torch.Generator().manual_seed(8)
    points = torch.randn(300, 4, generator=generator).round(decimals=2)
    codewords, labels = codebooks.kmeans(points, 7, seed=1, rounds=200)
    for run in (assign, ASSIGN.launch):
        assert torch.equal(run(points, codewords), labels.int())  # type: ignore[operator]
    for run in (update, UPDATE.launch):
        assert torch.allclose(run(points, labels, codewords), codewords, atol=1e-6)  # type: ignore[operator]

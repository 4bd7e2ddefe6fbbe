"""k-means end to end."""

from __future__ import annotations

import torch

from edgekit.runtimes.kernels.kmeans import assign, fit, update


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

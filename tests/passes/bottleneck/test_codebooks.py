from __future__ import annotations

import itertools

import pytest
import torch

from edgekit.passes.bottleneck.codebooks import (
    assign,
    fit_codebooks,
    kmeans,
    move_average,
    order_units,
    rate_prefixes,
)


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _clusters(count: int, each: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    centres = 10 * _normal(count, 3, seed=seed)
    return centres, (centres[:, None] + 0.1 * _normal(count, each, 3, seed=seed + 1)).reshape(-1, 3)


def test_kmeans_finds_separate_clusters_and_their_means():
    centres, points = _clusters(6, 50)
    codewords, labels = kmeans(points, 6, seed=0)
    assert torch.bincount(labels).tolist() == [50] * 6
    found = codewords[assign(centres, codewords)]
    assert torch.allclose(found, points.reshape(6, 50, 3).mean(1))


def test_kmeans_is_the_same_for_a_seed_and_near_the_optimum_of_all_partitions():
    """Eight points into two codewords: all 127 partitions are tried."""
    points = _normal(8, 2, seed=3)
    first, again = kmeans(points, 2, seed=4), kmeans(points, 2, seed=4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])

    def cost(labels: torch.Tensor) -> float:
        return sum(float((p - p.mean(0)).square().sum()) for p in (points[labels == 0], points[labels == 1]) if len(p))

    best = min(cost(torch.tensor([0, *rest])) for rest in itertools.product((0, 1), repeat=7))
    assert min(cost(kmeans(points, 2, seed=seed)[1]) for seed in range(5)) == pytest.approx(best)


def test_kmeans_leaves_no_codeword_empty_even_where_points_repeat():
    points = torch.cat([torch.zeros(50, 2), torch.arange(10.0)[:, None].repeat(1, 2)]).double()
    _, labels = kmeans(points, 8, seed=0)
    assert (torch.bincount(labels, minlength=8) > 0).all()


def test_kmeans_in_a_metric_is_kmeans_of_the_mapped_points():
    points = _normal(200, 3, seed=5)
    factor = _normal(3, 3, seed=6)
    codewords, labels = kmeans(points, 5, seed=7, metric=factor @ factor.T)

    def cost(chosen: torch.Tensor) -> torch.Tensor:
        return ((points - codewords[chosen]) @ factor).square().sum(1)

    every = torch.stack([cost(torch.full((200,), index)) for index in range(5)])
    assert torch.allclose(cost(labels), every.min(0).values)
    for index in range(5):
        assert torch.allclose(codewords[index], points[labels == index].mean(0))


def test_a_price_on_bits_lowers_the_entropy():
    points = _normal(2000, 2, seed=8)

    def entropy(price: float) -> float:
        shares = torch.bincount(kmeans(points, 16, seed=0, price=price)[1], minlength=16) / 2000
        return float(-(shares * shares.clamp_min(1e-9).log2()).sum())

    assert entropy(0.3) < entropy(0.1) < entropy(0.0) - 0.05


def test_every_unit_makes_the_error_smaller_and_decode_is_a_sum():
    points = _normal(600, 8, seed=12) * torch.tensor([4.0, 4, 3, 3, 1, 1, 0.5, 0.5], dtype=torch.float64)
    books = fit_codebooks(points, groups=2, stages=4, codewords=8, seed=0)
    indices = books.encode(points)
    errors = [float((points - books.decode(indices, kept)).square().sum()) for kept in range(len(books.units) + 1)]
    assert all(after < before for before, after in itertools.pairwise(errors))
    # Twelve bits for four columns: 1.6 % at the best for a Gaussian, and residual codebooks of eight lose some.
    assert errors[-1] < 0.06 * errors[0]
    by_hand = torch.cat([sum(books.codewords[g, s][indices[:, g, s]] for s in range(4)) for g in range(2)], dim=1)
    assert torch.allclose(books.decode(indices), by_hand)
    # The group with the larger spread goes first.
    assert books.units[0] == (0, 0)


def test_units_are_ordered_by_gain_within_the_order_of_stages():
    gains = {(0, 0): 5.0, (0, 1): 1.0, (1, 0): 2.0, (1, 1): 9.0}
    assert order_units(gains, 2, 2) == ((0, 0), (1, 0), (1, 1), (0, 1))


@pytest.mark.parametrize(("units", "rates", "at_least"), [(32, 12, 10), (64, 8, 8), (1, 8, 1), (5, 20, 5)])
def test_rates_fall_from_all_units_to_one(units, rates, at_least):
    prefixes = rate_prefixes(units, rates)
    assert prefixes[0] == units
    assert prefixes[-1] == 1
    assert list(prefixes) == sorted(set(prefixes), reverse=True)
    assert at_least <= len(prefixes) <= max(rates, 1)


def test_moving_average_goes_to_the_mean_and_leaves_unread_codewords():
    points = torch.tensor([[2.0], [4.0]])
    moved = move_average(torch.tensor([[0.0], [7.0]]), points, torch.tensor([0, 0]), 0.9)
    assert torch.allclose(moved, torch.tensor([[0.3], [7.0]]))

"""Drift: both distances against plain definitions, found where there is some, and seldom where there is none."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.telemetry.drift import LARGE, bins, chi_squared, compare, distance
from edgekit.fleet.telemetry.histogram import histogram_of

WEIGHTS = st.dictionaries(st.integers(-400, 400), st.floats(0.5, 1e6), min_size=1, max_size=40)


def drawn(seed: int, count: int, mean: float = 0.0, sigma: float = 0.4) -> dict[int, int]:
    return histogram_of(np.random.default_rng(seed).lognormal(mean, sigma, count).tolist())


def test_the_same_is_no_drift() -> None:
    found = compare(drawn(1, 5000), drawn(1, 5000), 5000, 5000)
    assert found is not None
    assert found.index == pytest.approx(0, abs=1e-12) and found.distance == pytest.approx(0, abs=1e-6)
    assert not found.is_drift


def test_a_shift_is_drift_and_a_larger_one_more_so() -> None:
    small = compare(drawn(1, 5000), drawn(2, 5000, mean=0.3), 5000, 5000)
    large = compare(drawn(1, 5000), drawn(2, 5000, mean=1.0), 5000, 5000)
    assert small is not None and large is not None
    assert small.is_drift and large.is_drift
    assert large.index > small.index and large.distance > small.distance


def test_what_was_never_seen_is_drift() -> None:
    found = compare({10: 1000.0}, {10: 500.0, 40: 500.0}, 1000, 1000)
    assert found is not None and found.is_drift
    below = compare({10: 1000.0}, {10: 500.0, -40: 500.0}, 1000, 1000)
    assert below is not None and below.is_drift


def test_few_samples_tell_nothing() -> None:
    assert compare(drawn(1, 5000), drawn(2, 5000, mean=1.0), 5000, 199) is None
    assert compare({}, drawn(2, 500), 500, 500) is None


def test_chance_seldom_looks_like_drift() -> None:
    """Whatever the number of samples: by construction one in 10,000."""
    false = sum(
        found.is_drift
        for seed in range(400)
        for count in (200, 1000)
        if (found := compare(drawn(seed, 2000), drawn(seed + 10_000, count), 2000, count))
    )
    assert false <= 1


def test_the_index_over_its_noise_is_chi_squared() -> None:
    """Yurdakul's result, which the threshold stands on."""
    scaled, freedom = [], 0
    for seed in range(300):
        found = compare(drawn(seed, 4000), drawn(seed + 10_000, 4000), 4000, 4000)
        assert found is not None
        scaled.append(found.index / (1 / 4000 + 1 / 4000))
        freedom = sum(share > 0 for share in found.before) - 1
    assert np.mean(scaled) == pytest.approx(freedom, rel=0.15)


@given(WEIGHTS, WEIGHTS)
def test_distances_are_what_they_are_defined_as(reference: dict[int, float], recent: dict[int, float]) -> None:
    found = compare(reference, recent, 1e4, 1e4)
    assert found is not None
    assert found.index >= -1e-9 and 0 <= found.distance <= 1 and found.limit >= LARGE
    assert sum(found.before) == pytest.approx(1) and sum(found.now) == pytest.approx(1)
    assert found.before[0] == 0, "nothing of the reference is below it"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_jensen_and_shannon_agree_with_entropies(p: list[float], q: list[float]) -> None:
    size = min(len(p), len(q))
    a, b = (np.array(one[:size]) + 1e-6 for one in (p, q))
    a, b = a / a.sum(), b / b.sum()

    def entropy(x: np.ndarray) -> float:
        return float(-(x * np.log2(x)).sum())

    expected = math.sqrt(max(0.0, entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2))
    assert distance(a.tolist(), b.tolist()) == pytest.approx(expected, abs=1e-6)


def test_distributions_without_overlap_are_one_apart() -> None:
    assert distance((1.0, 0.0), (0.0, 1.0)) == pytest.approx(1)


@given(WEIGHTS)
def test_bins_hold_their_share_of_the_reference(reference: dict[int, float]) -> None:
    edges = bins(reference)
    assert list(edges) == sorted(set(edges))
    held = Counter[int]()
    for bucket, weight in reference.items():
        held[next(at for at, edge in enumerate(edges) if bucket <= edge)] += weight  # type: ignore[assignment]
    assert min(held.values()) >= 0.04 * sum(reference.values()) - 1e-6


@pytest.mark.parametrize(("freedom", "z", "expected"), [(1, 1.645, 3.84), (10, 1.645, 18.31), (20, 3.09, 45.31)])
def test_chi_squared_against_the_tables(freedom: int, z: float, expected: float) -> None:
    assert chi_squared(freedom, z) == pytest.approx(expected, rel=0.03)


def test_few_samples_of_the_same_seldom_look_like_drift() -> None:
    found = []
    for seed in range(0, 400, 2):
        drift = compare(drawn(seed, 200, sigma=1.5), drawn(seed + 1, 200, sigma=1.5), 200, 200)
        assert drift is not None
        found.append(drift)
    assert sum(drift.is_drift for drift in found) <= 2
    assert sum(drift.index >= LARGE for drift in found) > 20, "the usual rule alone would cry out"

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.quantizers.observers import (
    BINS,
    Histogram,
    MeanSquaredError,
    MinMax,
    Observer,
    Percentile,
    Seen,
    Suited,
)


def seen_of(values: np.ndarray) -> Seen:
    counts, _ = np.histogram(values, BINS, (values.min(), values.max()))
    return Seen(float(values.min()), float(values.max()), counts.astype(float))


def normal_with_outlier() -> np.ndarray:
    return np.concatenate([np.random.default_rng(0).normal(size=200_000), [60.0, -60.0]])


def squared_error(values: np.ndarray, low: float, high: float, levels: int) -> float:
    """What a grid of `levels` steps over [low, high] leaves, by rounding each value."""
    step = (high - low) / levels
    rounded = np.round((np.clip(values, low, high) - low) / step) * step + low
    return float(np.square(rounded - values).sum())


def test_min_max_takes_everything() -> None:
    assert MinMax().range_of(seen_of(normal_with_outlier()), 255, False) == (-60.0, 60.0)


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.99])
def test_percentiles_are_those_of_the_values_to_a_bin(percent: float) -> None:
    values = np.random.default_rng(1).normal(size=100_000)
    low, high = Percentile(percent).range_of(seen_of(values), 255, False)
    tail = (100 - percent) / 2
    width = 2 * (values.max() - values.min()) / BINS
    assert low == pytest.approx(np.percentile(values, tail), abs=2 * width)
    assert high == pytest.approx(np.percentile(values, 100 - tail), abs=2 * width)


def test_one_sided_values_are_cut_on_one_side() -> None:
    values = np.abs(np.random.default_rng(2).normal(size=100_000))
    low, high = Percentile(99.0).range_of(seen_of(values), 255, False)
    assert low == values.min()
    assert high == pytest.approx(np.percentile(values, 99), abs=4 * values.max() / BINS)


@pytest.mark.parametrize("levels", [15, 255])
def test_the_mse_range_is_as_good_as_the_best_of_a_brute_force_search(levels: int) -> None:
    values = np.random.default_rng(3).laplace(size=50_000)
    low, high = MeanSquaredError().range_of(seen_of(values), levels, True)
    limit = np.abs(values).max()
    best = min(squared_error(values, -limit * f, limit * f, levels) for f in np.linspace(0.02, 1, 99))
    assert low == -high
    assert squared_error(values, low, high, levels) <= 1.1 * best


@pytest.mark.parametrize("observer", [Percentile(99.9), Histogram()], ids=lambda one: type(one).__name__)
def test_lonely_outliers_are_cut_off(observer: Observer) -> None:
    low, high = observer.range_of(seen_of(normal_with_outlier()), 255, False)
    assert -60 < low < -2
    assert 2 < high < 60


@pytest.mark.parametrize(
    "observer", [MinMax(), Percentile(), MeanSquaredError(), Histogram()], ids=lambda one: type(one).__name__
)
def test_a_constant_has_a_finite_range(observer: Observer) -> None:
    counts = np.zeros(BINS)
    counts[0] = 10
    assert np.isfinite(observer.range_of(Seen(0.0, 0.0, counts), 255, False)).all()


@pytest.mark.parametrize("percent", [50.0, 0.0, 100.1])
def test_odd_percentiles_are_refused(percent: float) -> None:
    with pytest.raises(UsageError, match="allowed above 50"):
        Percentile(percent)


def test_the_automatic_observer_cuts_nothing_off_where_the_network_normalises_by_layer() -> None:
    seen = seen_of(normal_with_outlier())
    assert Suited().suited(True).range_of(seen, 255, False) == (seen.minimum, seen.maximum)
    assert Suited().suited(False).range_of(seen, 255, False) == MeanSquaredError().range_of(seen, 255, False)
    assert MeanSquaredError().suited(True) == MeanSquaredError()

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.evaluation.intervals import bootstrap, mcnemar, share, share_difference


def paired(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two models, by how many samples each kind has."""
    counts = (both, first, second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_share_is_held_by_its_interval_and_narrows_with_samples():
    few, many = share(np.arange(20) % 4 == 0), share(np.arange(2000) % 4 == 0)
    assert few.value == many.value == 0.25
    assert few.low < many.low < 0.25 < many.high < few.high


def test_paired_difference_is_the_published_one():
    """Newcombe (1998), 36, 12, 2 and 0 of 50 by method 10."""
    found = share_difference(*paired(36, 12, 2, 0))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


def test_paired_interval_covers_the_truth_nineteen_times_in_twenty():
    draw = np.random.default_rng(0)
    chances = np.array([0.80, 0.06, 0.03, 0.11])
    truth = chances[1] - chances[2]
    found = [share_difference(*paired(*draw.multinomial(300, chances))) for _ in range(600)]
    assert 0.925 < np.mean([one.low <= truth <= one.high for one in found]) < 0.98


def test_pairing_narrows_the_interval_of_models_that_agree():
    agreeing, independent = paired(150, 6, 4, 40), paired(120, 36, 34, 10)
    widths = [found.high - found.low for found in (share_difference(*agreeing), share_difference(*independent))]
    assert widths[0] < 0.7 * widths[1]


def test_models_that_answer_alike_keep_some_doubt():
    found = share_difference(*paired(45, 0, 0, 5))
    assert found.value == 0 and found.low < 0 < found.high


def test_swapping_the_models_mirrors_the_interval():
    first, second = paired(30, 9, 4, 7)
    found, mirrored = share_difference(first, second), share_difference(second, first)
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low))


def test_mcnemar_is_the_exact_binomial_tail():
    stats = pytest.importorskip("scipy.stats")
    for first, second in ((9, 2), (3, 3), (0, 6), (0, 0), (400, 330)):
        wanted = stats.binomtest(first, first + second).pvalue if first + second else 1.0
        assert mcnemar(*paired(20, first, second, 5)) == pytest.approx(wanted, rel=1e-9)


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    found = bootstrap(lambda rows: float(values[rows].mean()), len(values))
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_gives_the_same_interval_twice():
    values = np.arange(30.0)
    assert bootstrap(lambda rows: float(values[rows].mean()), 30) == bootstrap(
        lambda rows: float(values[rows].mean()), 30
    )


def test_no_samples_and_unpaired_answers_are_refused():
    with pytest.raises(DataError, match="same samples"):
        share_difference(np.ones(3, bool), np.ones(4, bool))
    for wrong in (np.ones(0, bool), np.ones(3), np.ones((2, 2), bool)):
        with pytest.raises(DataError, match="bool"):
            share(wrong)
    with pytest.raises(DataError, match="allowed"):
        bootstrap(lambda rows: 0.0, 0)

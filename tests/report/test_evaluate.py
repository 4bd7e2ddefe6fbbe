from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.report.evaluate import accuracy, evaluate_accuracy, evaluate_agreement
from edgekit.report.metrics import wilson_interval


def _scores(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 10)).astype(np.float32)


def test_agreement_counts_rows_whose_first_choice_is_the_same():
    reference = _scores(40)
    actual = reference.copy()
    actual[:4] = -actual[:4]
    quality = evaluate_agreement(reference, actual, task="classification")
    assert quality.value == quality.top1_agreement == 0.9
    assert (quality.low, quality.high) == wilson_interval(0.9, 40)
    assert quality.samples == 40
    # Four of forty rows negated: noise is four times their share of the signal.
    signal = np.square(reference.astype(np.float64))
    assert quality.sqnr_db == pytest.approx(10 * math.log10(signal.sum() / (4 * signal[:4].sum())))


def test_equal_answers_are_exact():
    reference = _scores(3)
    assert evaluate_agreement(reference, reference, task="classification").sqnr_db == math.inf
    assert evaluate_agreement(reference, reference, task="embedding").value == pytest.approx(1.0)
    assert evaluate_agreement(reference, reference, task="other").value == math.inf


def test_embeddings_are_judged_by_cosine_with_an_interval_inside_its_range():
    reference = _scores(50)
    quality = evaluate_agreement(reference, reference + 0.1 * _scores(50, 1), task="embedding")
    assert quality.measure == "cosine"
    assert -1 <= quality.low < quality.value < quality.high <= 1
    assert evaluate_agreement(reference[:1], reference[:1], task="embedding").low is None


def test_accuracy_is_judged_against_labels_and_keeps_the_float_models():
    reference = _scores(100)
    labels = reference.argmax(1)
    labels[:10] = (labels[:10] + 1) % 10
    quality = evaluate_accuracy(labels, reference, reference)
    assert quality.value == quality.float_accuracy == 0.9
    assert quality.top1_agreement == 1.0
    assert accuracy(labels, reference) == 0.9


@pytest.mark.parametrize("task", ["classification", "embedding", "other"])
def test_shapes_emptiness_and_nan_are_refused(task):
    good = _scores(4)
    bad = good.copy()
    bad[1, 2] = np.nan
    for reference, actual in ((good, good[:3]), (good[:0], good[:0]), (good, bad), (bad, good)):
        with pytest.raises(DataError):
            evaluate_agreement(reference, actual, task=task)


@pytest.mark.parametrize("labels", [[], [0, 1], [0, 1, 10], [0, -1, 2], [[0], [1], [2]]])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(DataError):
        evaluate_accuracy(labels, _scores(3))


def test_interval_covers_the_true_share_about_as_often_as_it_says():
    """1,000 draws at 95 %: the share of hits has a standard deviation of 0.7 points, and Wilson's is within 1.5."""
    rng = np.random.default_rng(0)
    for share in (0.9, 0.97):
        hits = rng.binomial(200, share, 1000)
        inside = [low <= share <= high for low, high in (wilson_interval(hit / 200, 200) for hit in hits)]
        assert np.mean(inside) > 0.95 - 0.015 - 3 * 0.007

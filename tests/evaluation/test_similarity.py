from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.evaluation.similarity import average_ranks, pair_auc, spearman


def test_equal_values_share_the_mean_of_their_places():
    assert average_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_spearman_matches_scipy_with_ties():
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for _ in range(5):
        first, second = draw.integers(0, 6, 30).astype(float), draw.normal(size=30)
        assert spearman(first, second) == pytest.approx(float(stats.spearmanr(first, second).statistic), abs=1e-12)


def test_spearman_sees_order_alone_and_nothing_in_a_constant():
    values = np.linspace(0.1, 3, 9)
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -(values**3)) == pytest.approx(-1)
    assert spearman(values, np.ones(9)) == 0


def test_auc_is_the_share_of_pairs_in_order_ties_half():
    draw = np.random.default_rng(0)
    scores, related = draw.integers(0, 5, 40), draw.random(40) < 0.4
    good, bad = scores[related], scores[~related]
    wanted = np.mean([(a > b) + 0.5 * (a == b) for a in good for b in bad])
    assert pair_auc(scores, related) == pytest.approx(wanted, abs=1e-12)


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(DataError, match="allowed"):
        spearman(np.ones(3), np.ones(4))
    with pytest.raises(DataError, match="allowed"):
        spearman(np.ones(1), np.ones(1))
    with pytest.raises(DataError, match="0 unrelated"):
        pair_auc(np.ones(3), np.ones(3, bool))
    with pytest.raises(DataError, match="bool"):
        pair_auc(np.ones(3), np.ones(3))

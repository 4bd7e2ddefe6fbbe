from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.evaluation.embeddings import neighbour_classes, probe_classes, row_cosines, unit_rows


def clusters(count: int, seed: int, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """[count, 8] around three of the axes, and which."""
    draw = np.random.default_rng(seed)
    classes = np.arange(count) % 3
    return np.eye(8)[classes] + noise * draw.normal(size=(count, 8)), classes


def test_both_classifiers_find_clusters_of_unseen_rows():
    known, classes = clusters(90, 0)
    asked, truth = clusters(60, 1)
    assert (neighbour_classes(known, classes, asked) == truth).mean() > 0.9
    assert (probe_classes(known, classes, asked) == truth).mean() > 0.9


def test_both_classifiers_are_at_chance_where_classes_say_nothing():
    known, classes = clusters(300, 0)
    shuffled = np.random.default_rng(2).permutation(classes)
    asked, truth = clusters(300, 1)
    for found in (neighbour_classes(known, shuffled, asked), probe_classes(known, shuffled, asked)):
        assert 0.15 < (found == truth).mean() < 0.55


def test_neighbours_vote_by_closeness_and_not_by_number():
    known = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    classes = np.array([0, 1, 1])
    assert neighbour_classes(known, classes, np.array([[1.0, 0.05]]), neighbours=3)[0] == 0
    assert neighbour_classes(known, classes, np.array([[1.0, 0.05]]), neighbours=3, temperature=10.0)[0] == 1


def test_neighbours_do_not_care_for_lengths():
    known, classes = clusters(60, 0)
    asked, _ = clusters(20, 1)
    scaled = known * np.linspace(0.1, 9, 60)[:, None]
    assert np.array_equal(neighbour_classes(scaled, classes, asked), neighbour_classes(known, classes, asked))


def test_probe_does_not_care_for_the_scale_of_a_feature():
    known, classes = clusters(60, 0)
    asked, _ = clusters(20, 1)
    scale = np.geomspace(0.1, 50, 8)
    assert np.array_equal(probe_classes(known * scale, classes, asked * scale), probe_classes(known, classes, asked))


def test_cosines_of_rows_are_those_of_the_textbook_and_a_row_of_zeros_stays():
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(5, 7)), draw.normal(size=(5, 7))
    by_hand = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(row_cosines(first, second), by_hand, rtol=1e-12)
    assert not unit_rows(np.zeros((1, 3))).any()


@pytest.mark.parametrize("classifier", [neighbour_classes, probe_classes])
def test_classifiers_refuse_what_does_not_fit(classifier):
    known, classes = clusters(12, 0)
    for arguments in (
        (known, classes, known[:, :3]),
        (known, classes[:4], known),
        (known, classes.astype(float), known),
        (known, classes - 1, known),
        (known[:0], classes[:0], known),
    ):
        with pytest.raises(DataError, match="allowed"):
            classifier(*arguments)


def test_more_neighbours_than_rows_are_refused():
    known, classes = clusters(9, 0)
    with pytest.raises(DataError, match="allowed 1 to 9"):
        neighbour_classes(known, classes, known)


def test_cosines_refuse_unequal_shapes():
    with pytest.raises(DataError, match="allowed"):
        row_cosines(np.zeros((2, 3)), np.zeros((3, 3)))

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.evaluation.retrieval import ranks, recall_hits


def test_ranks_are_those_of_a_full_sort():
    draw = np.random.default_rng(0)
    queries, documents = draw.normal(size=(20, 5)), draw.normal(size=(40, 5))
    relevant = draw.integers(0, 40, 20)
    cosine = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (
        documents / np.linalg.norm(documents, axis=1)[:, None]
    ).T
    wanted = [int(np.flatnonzero(np.argsort(-row) == own)[0]) for row, own in zip(cosine, relevant, strict=True)]
    assert ranks(queries, documents, relevant).tolist() == wanted


def test_recall_counts_the_k_nearest():
    documents = np.eye(4)
    queries = np.array([[1.0, 0.5, 0.2, 0.1]] * 4)
    relevant = np.arange(4)
    for k in range(1, 5):
        assert recall_hits(queries, documents, relevant, k).tolist() == [place < k for place in range(4)]


def test_equal_embeddings_find_nothing():
    same = np.ones((6, 3))
    assert not recall_hits(same, same, np.arange(6), 5).any()


def test_what_does_not_fit_is_refused():
    rows = np.ones((3, 2))
    for arguments in (
        (rows, np.ones((3, 4)), np.arange(3)),
        (rows, rows, np.array([0, 1])),
        (rows, rows, np.arange(1, 4)),
    ):
        with pytest.raises(DataError, match="allowed"):
            ranks(*arguments)
    for k in (0, 4):
        with pytest.raises(DataError, match="allowed 1 to 3"):
            recall_hits(rows, rows, np.arange(3), k)

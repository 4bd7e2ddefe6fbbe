from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekit.bundle.manifest import Postprocess
from edgekit.errors import DataError, InputError
from edgekit.runtimes.predict import Prediction, Predictor, probabilities, top_labels

CLASSES = Postprocess(kind="classification", output="scores", labels=("cat", "dog", "fox"))


@given(arrays(np.float32, (3, 5), elements=st.floats(-1000, 1000, width=32)))
def test_probabilities_are_a_distribution_in_the_order_of_the_scores(scores):
    shares = probabilities(scores)
    np.testing.assert_allclose(shares.sum(-1), 1.0, atol=1e-12 if shares.min() < 0.99 else 0.01)
    for row, share in zip(scores, shares, strict=True):
        assert share[row.argmax()] == share.max()


def test_softmax_matches_the_formula():
    scores = np.array([1.0, 2.0, -3.0])
    np.testing.assert_allclose(probabilities(scores), np.exp(scores) / np.exp(scores).sum(), rtol=1e-12)


@pytest.mark.parametrize("shares", [[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [0.703, 0.199, 0.102]])
def test_probabilities_pass_through_unchanged(shares):
    np.testing.assert_array_equal(probabilities(np.array(shares)), shares)


def test_top_labels_are_sorted_and_ties_keep_the_order_of_classes():
    outputs = {"scores": np.array([[1.0, 3.0, 3.0]], np.float32)}
    top = top_labels(outputs, CLASSES, 2)
    assert [label for label, _ in top] == ["dog", "fox"]
    assert top_labels(outputs, CLASSES, 9)[-1][0] == "cat"


def test_classes_without_a_label_are_named_by_their_number():
    outputs = {"scores": np.array([0.0, 0.0, 0.0, 9.0])}
    assert top_labels(outputs, CLASSES, 1)[0][0] == "3"


def test_embeddings_have_no_labels_and_batches_are_refused():
    assert top_labels({"vector": np.zeros((1, 3))}, Postprocess(kind="embedding", output="vector"), 5) == ()
    assert top_labels({"vector": np.zeros((1, 3))}, None, 5) == ()
    with pytest.raises(DataError, match="one sample at a time"):
        top_labels({"scores": np.zeros((2, 3))}, CLASSES, 5)


def test_prediction_becomes_json_with_labels_or_outputs():
    stages = {"preprocess": 1.0, "inference": 2.0, "postprocess": 0.1}
    outputs = {"scores": np.array([[1.0, 2.0]], np.float32)}
    with_labels = Prediction(outputs, (("dog", 0.7), ("cat", 0.3)), stages).to_json()
    assert with_labels["top"][0] == {"label": "dog", "probability": 0.7}
    without = Prediction(outputs, (), stages).to_json()
    assert json.loads(json.dumps(without)) == {"outputs": {"scores": [[1.0, 2.0]]}, "latency_ms": stages}


@pytest.mark.parametrize("given", ["cats.edgekit", None])
def test_a_predictor_without_an_open_bundle_says_how_to_open_one(given):
    with pytest.raises(InputError, match="takes an open bundle") as refused:
        Predictor(given, None)
    assert "Bundle.open" in refused.value.hint

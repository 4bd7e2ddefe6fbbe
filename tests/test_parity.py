from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.bundle.manifest import Postprocess
from edgekit.model import Model
from edgekit.parity import Limits, Quality, compare, judge, run_model
from edgekit.report.metrics import expected_drop

CLASSIFIER = Model(
    "net",
    nn.Linear(2, 3),
    {"x": torch.zeros(1, 2)},
    output_names=("logits",),
    postprocess=Postprocess(kind="classification", output="logits"),
)
WANTED = np.array([[9.0, 0.0, 0.0], [0.0, 1.0, 0.9]], np.float32)


def test_a_classifier_loses_only_what_the_float_model_was_sure_of() -> None:
    unsure = WANTED.copy()
    unsure[1] = [0.0, 0.9, 1.0]
    sure = WANTED.copy()
    sure[0] = [0.0, 9.0, 0.0]
    assert judge(CLASSIFIER, {"logits": WANTED}, {"logits": WANTED}).drop == 0.0
    near = judge(CLASSIFIER, {"logits": WANTED}, {"logits": unsure})
    far = judge(CLASSIFIER, {"logits": WANTED}, {"logits": sure})
    assert near.top1_agreement == far.top1_agreement == 0.5
    probability = np.exp([0.0, 1.0, 0.9]) / np.exp([0.0, 1.0, 0.9]).sum()
    assert near.drop == pytest.approx(100 * (probability[1] - probability[2]) / 2, rel=1e-5)
    assert far.drop > 49


def test_expected_drop_is_never_negative() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert expected_drop(rng.normal(size=(7, 5)), rng.normal(size=(7, 5))) >= 0


def test_known_labels_give_the_true_drop() -> None:
    labelled = CLASSIFIER.evolve_quietly(labels=(0, 2))
    better = WANTED.copy()
    better[1] = [0.0, 0.9, 1.0]
    quality = judge(labelled, {"logits": WANTED}, {"logits": better})
    assert (quality.reference_accuracy, quality.accuracy, quality.drop) == (0.5, 1.0, -50.0)


def test_anything_else_is_judged_by_cosine() -> None:
    other = CLASSIFIER.evolve_quietly(postprocess=None)
    quality = judge(other, {"logits": WANTED}, {"logits": 2 * WANTED})
    assert quality.drop == pytest.approx(0.0, abs=1e-6)
    assert quality.sqnr_db == pytest.approx(0.0, abs=1e-6)


def test_each_limit_speaks_for_itself() -> None:
    quality = Quality(sqnr_db=12.0, drop=2.0, cosine=0.98, samples=8, reference="float model")
    assert quality.violation(Limits(None, None)) is None
    assert "drop 2.00 points, allowed 1" in (quality.violation(Limits(1.0, None)) or "")
    assert "SQNR 12.0 dB, allowed 20" in (quality.violation(Limits(None, 20.0)) or "")


def test_the_worst_output_decides() -> None:
    reference = {"a": np.ones((2, 4), np.float32), "b": np.ones((2, 4), np.float32)}
    actual = {"a": np.ones((2, 4), np.float32), "b": np.full((2, 4), 1.1, np.float32)}
    step = compare("step", reference, actual)
    assert step.sqnr_db == pytest.approx(20.0, abs=1e-3)
    assert step.max_abs == pytest.approx(0.1, rel=1e-5)


def test_integer_outputs_must_be_equal() -> None:
    reference = {"ids": np.array([1, 2])}
    assert compare("step", reference, {"ids": np.array([1, 2])}).sqnr_db == math.inf
    assert compare("step", reference, {"ids": np.array([1, 3])}).sqnr_db == -math.inf


def test_batches_and_single_samples_give_the_same_rows() -> None:
    samples = tuple({"x": torch.randn(1, 2)} for _ in range(19))
    single = run_model(CLASSIFIER, samples)
    batched = run_model(CLASSIFIER.evolve_quietly(dynamic={"x": {0: "batch"}}), samples)
    np.testing.assert_allclose(single["logits"], batched["logits"], rtol=1e-5, atol=1e-6)


def test_the_worst_output_gives_the_cosine() -> None:
    reference = {"a": np.eye(2, 8, dtype=np.float32), "b": np.eye(2, 8, dtype=np.float32)}
    actual = {"a": reference["a"], "b": np.roll(reference["b"], 1, axis=1)}
    assert judge(CLASSIFIER.evolve_quietly(postprocess=None), reference, actual).drop == pytest.approx(100.0)


def test_rows_of_one_number_are_compared_together() -> None:
    """Row by row their cosine would be that of their signs: 1, whatever the numbers."""
    reference = {"p": np.array([[0.1], [0.9]], np.float32)}
    quality = judge(CLASSIFIER.evolve_quietly(postprocess=None), reference, {"p": reference["p"][::-1]})
    assert quality.cosine == pytest.approx(2 * 0.09 / 0.82, rel=1e-6)

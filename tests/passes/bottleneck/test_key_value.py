from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgekit.errors import DataError
from edgekit.passes.bottleneck.key_value import KeyValueBottleneck, random_axes
from edgekit.passes.capture import Capture
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.split import split
from edgekit.registry import CODECS
from edgekit.zoo.fashion import fashion_cnn

SWAPPED = {1: 8, 8: 1}  # trouser and bag exchange their names


@pytest.fixture(scope="module")
def fashion():
    """The net cut where its last convolution's output crosses, 256 images with labels or the net's own answers."""
    model = Capture()(fashion_cnn())
    head, tail = split(model, [find_cut(model, "features")])
    keyed = KeyValueBottleneck(codebooks=64, keys=16).insert(head, tail)
    samples = keyed.head.calibration + keyed.head.held_out
    codec = CODECS.load(keyed.kind)(keyed.head.output_specs, keyed.rates, keyed.tables)
    feature = torch.cat([next(iter(keyed.head.forward(sample).values())) for sample in samples]).numpy()
    answers = torch.cat([model.forward(sample)["logits"] for sample in samples]).argmax(1).numpy()
    return model, keyed, codec, feature, answers


def _indices(codec, feature: np.ndarray, rate: int = 0) -> np.ndarray:
    """Over the wire: [codebooks kept, N]."""
    return codec.decode_indices(codec.encode([feature], rate), [len(feature)], rate)[0]


def test_the_memory_answers_as_the_net_does_at_most_rates(fashion):
    model, keyed, codec, feature, answers = fashion
    held_out = slice(len(model.calibration), None)
    agreement = [
        float((keyed.memory.read(_indices(codec, feature[held_out], rate)).argmax(1) == answers[held_out]).mean())
        for rate in range(keyed.rates)
    ]
    assert keyed.rates == 8
    assert min(agreement[:4]) >= 0.9
    assert agreement[-1] < agreement[0]
    assert len(codec.encode([feature[:1]])) <= 40


def test_values_learn_new_names_for_two_classes_and_the_others_keep_theirs(fashion):
    """Only examples of the two classes are shown; keys and network stay. Judged on the images that were not."""
    _, keyed, codec, feature, answers = fashion
    indices = _indices(codec, feature)
    truth = np.array([SWAPPED.get(int(label), int(label)) for label in answers])
    moved = np.isin(answers, list(SWAPPED))
    shown = np.flatnonzero(moved)[: moved.sum() // 2]
    judged = np.setdiff1d(np.arange(len(answers)), shown)
    memory = keyed.memory
    for _ in range(30):
        memory = memory.update(indices[:, shown], truth[shown], 1.0)

    def right(one, of: np.ndarray) -> float:
        chosen = judged[of[judged]]
        return float((one.read(indices[:, chosen]).argmax(1) == truth[chosen]).mean())

    assert right(keyed.memory, moved) == 0.0
    assert right(memory, moved) >= 0.9
    before, after = right(keyed.memory, ~moved), right(memory, ~moved)
    assert before >= 0.9
    # Two images of those that were not shown: their keys overlap with those of the classes that were.
    assert after >= before - 2 / int((~moved).sum())


def test_projections_are_the_same_for_a_seed_and_ignore_what_never_changes():
    points = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    points[:, 2] = 3.0
    axes, again = random_axes(points, 4, 3, 5), random_axes(points, 4, 3, 5)
    assert torch.equal(axes.project, again.project)
    assert axes.project.shape == (6, 12)
    assert (axes.project[2] == 0).all()


def test_too_little_data_is_refused(stages):
    head, tail = stages
    with pytest.raises(DataError, match="calibration samples"):
        KeyValueBottleneck(keys=64).insert(replace(head, calibration=head.calibration[:20]), tail)

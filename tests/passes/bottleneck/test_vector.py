from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import DataError
from edgekit.model import Model
from edgekit.passes.bottleneck.information import answers_of, information_plane, receive
from edgekit.passes.bottleneck.vector import Layout, VectorBottleneck, distance, gather_features, sensitivity
from edgekit.passes.capture import Capture
from edgekit.registry import CODECS

SMALL = VectorBottleneck(axes=8, groups=2, stages=5, codewords=8, rates=8, refine_epochs=3)


@pytest.fixture(scope="module")
def squeezed(stages):
    return SMALL.insert(*stages)


def _send(squeezed, rate: int) -> tuple[np.ndarray, float]:
    """The tail's answers for the held-out samples over the wire, [N, classes], and the mean bytes."""
    codec = CODECS.load(squeezed.kind)(squeezed.head.output_specs, squeezed.rates, squeezed.tables)
    answers, sizes = [], []
    for sample in squeezed.head.held_out:
        features = [value.numpy() for value in squeezed.head.forward(sample).values()]
        payload = codec.encode(features, rate)
        decoded = codec.decode(payload, [feature.shape for feature in features], rate)
        arrived = dict(zip(squeezed.head.output_names, map(torch.from_numpy, decoded), strict=True))
        answers.append(next(iter(squeezed.tail.forward(arrived).values())).numpy())
        sizes.append(len(payload))
    return np.concatenate(answers), float(np.mean(sizes))


def _true_answers(stages) -> np.ndarray:
    head, tail = stages
    return np.concatenate([tail.forward(head.forward(s))[tail.output_names[0]].numpy() for s in head.held_out])


def test_head_and_tail_compose_to_the_original_before_coding(stages, squeezed):
    head, tail = stages
    assert list(squeezed.tail.example_inputs) == list(squeezed.head.output_names)
    for sample in head.held_out[:4]:
        before = tail.forward(head.forward(sample))
        after = squeezed.tail.forward(squeezed.head.forward(sample))
        for name, value in before.items():
            assert torch.allclose(after[name], value, atol=1e-4)


def test_batches_of_other_sizes_run(stages, squeezed):
    image = torch.cat([sample["image"] for sample in stages[0].held_out[:5]])
    assert squeezed.head.forward({"image": image})[squeezed.head.output_names[0]].shape == (5, 36, 8)


def test_one_artifact_serves_eight_rates_each_shorter_and_no_closer(stages, squeezed):
    truth = _true_answers(stages)
    sent = [_send(squeezed, rate) for rate in range(squeezed.rates)]
    sizes = [size for _, size in sent]
    errors = [float(np.square(answers - truth).mean()) for answers, _ in sent]
    assert squeezed.rates >= 7
    assert all(finer > coarser for finer, coarser in pairwise(sizes))
    assert sizes[0] < 4 * 8 * 36 / 5
    # The finest rate spends more than a bit a value over the coarsest, and a bit is worth 6 dB.
    assert (sizes[0] - sizes[-1]) * 8 > 36 * 8
    assert errors[0] < errors[-1] / 4
    # Refinement trades neighbouring rates against each other; over two of them the order holds.
    assert all(finer < coarser for finer, coarser in zip(errors, errors[2:], strict=False))


def test_the_same_data_and_seed_give_the_same_tables(stages, squeezed):
    assert SMALL.insert(*stages).tables == squeezed.tables


def test_refining_against_the_tail_lowers_its_error_over_the_ladder(stages, squeezed):
    """Judged by the loss that it descends, on the data that it sees, and through the codec as it was rounded."""
    head, tail = stages
    target = torch.cat([tail.forward(sample)["logits"] for sample in map(head.forward, head.calibration)])

    def error(one) -> float:
        seen = replace(one, head=replace(one.head, held_out=one.head.calibration))
        answers = [torch.from_numpy(_send(seen, rate)[0]) for rate in range(one.rates)]
        return float(np.mean([float(distance(tail, answer, target)) for answer in answers]))

    plain, refined = (replace(SMALL, refine_epochs=epochs).insert(*stages) for epochs in (0, 20))
    assert error(refined) < 0.9 * error(plain)
    assert len(squeezed.detail) < 200


def test_a_price_on_bits_saves_bytes(stages):
    free = replace(SMALL, price=0.0, refine_epochs=0).insert(*stages)
    priced = replace(SMALL, price=0.2, refine_epochs=0).insert(*stages)
    assert _send(priced, 0)[1] < 0.95 * _send(free, 0)[1]


def test_sensitivity_weighs_the_channels_that_the_tail_reads(stages):
    head, tail = stages
    features = gather_features(head)
    (gradients,) = sensitivity(tail, features, seed=0).values()
    (feature,) = features.values()
    assert gradients.shape == feature.shape
    metric = Layout.of(feature).pooled(gradients)
    assert metric.shape == (8, 8)
    assert torch.linalg.eigvalsh(metric).min() > 0


@pytest.mark.parametrize("shape", [(6,), (4, 6), (6, 3, 2)])
def test_layouts_go_to_points_and_back(shape):
    value = torch.arange(2.0 * np.prod(shape)).reshape(2, *shape)
    layout = Layout.of(value)
    assert layout.points(value).shape[-1] == 6
    assert torch.equal(layout.values(layout.points(value)), value)


class _TwoPaths(nn.Module):
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = nn.functional.avg_pool2d(image, 3).flatten(1)
        return pooled, torch.tanh(pooled)


class _Join(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + 2 * right


def test_two_features_that_cross_are_coded_together_and_judged_by_squared_error(stages):
    images = stages[0]
    head = Capture()(replace(images, module=_TwoPaths(), output_names=("left", "right")))
    samples = tuple(head.forward(sample) for sample in head.calibration)
    tail = Model(
        "join", _Join(), samples[0], ("sum",), calibration=samples, dynamic={n: {0: "batch"} for n in samples[0]}
    )
    one = replace(SMALL, codewords=4, refine_epochs=2).insert(head, Capture()(tail))
    truth = np.concatenate([tail.forward(head.forward(sample))["sum"].numpy() for sample in head.held_out])
    errors = [float(np.square(_send(one, rate)[0] - truth).mean()) for rate in (0, one.rates - 1)]
    assert errors[0] < errors[1] < float(np.square(truth).mean())


def test_data_and_features_that_do_not_suffice_are_refused(stages):
    head, tail = stages
    with pytest.raises(DataError, match="no calibration"):
        SMALL.insert(replace(head, calibration=()), tail)
    with pytest.raises(DataError, match="feature vectors"):
        replace(SMALL, codewords=16).insert(replace(head, calibration=head.calibration[:1]), tail)
    with pytest.raises(DataError, match="channels"):
        replace(SMALL, groups=9).insert(head, tail)
    with pytest.raises(DataError, match="dimensions"):
        Layout.of(torch.zeros(2, 3, 4, 5, 6))


def test_the_information_plane_of_its_rates_falls_with_the_bits(stages, squeezed, tiny):
    held_out = squeezed.head.held_out + squeezed.head.calibration
    received = receive("narrow", squeezed, held_out, rates=(0, squeezed.rates - 1))
    inputs = torch.cat([sample["image"] for sample in held_out])
    finest, coarsest = information_plane(inputs, answers_of(tiny, held_out), received)
    assert finest.bits_sent > 4 * coarsest.bits_sent
    assert finest.i_xt > coarsest.i_xt

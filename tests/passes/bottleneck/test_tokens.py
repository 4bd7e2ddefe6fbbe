"""Bottleneck tokens on a tiny vision transformer: closed form, nested vectors, training, checkpoints, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.devices.device import load_device
from edgekit.errors import DataError, PlanError, UnknownNameError, UsageError
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model, flatten_outputs
from edgekit.passes.bottleneck.base import Squeezed
from edgekit.passes.bottleneck.coders import Trained, load_trained, pretrained, save_trained
from edgekit.passes.bottleneck.crossing import WIRE, Crossing
from edgekit.passes.bottleneck.features import FeatureSet
from edgekit.passes.bottleneck.tokens import TokenBottleneck, encode_all, ladder_of, squeeze_tokens
from edgekit.passes.bottleneck.tokens_checkpoint import PREFIX, empty_coders
from edgekit.passes.bottleneck.tokens_coding import token_coders, token_crossing
from edgekit.passes.bottleneck.tokens_ladder import Rung, rungs
from edgekit.passes.capture import Capture
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.split import split
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.registry import BOTTLENECKS
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.runtimes.session import SessionOptions
from edgekit.tensors import TensorSpec
from edgekit.zoo.fashion import fashion_vit

Stages = tuple[Model, Model]
QUICK = TokenBottleneck(counts=(8, 2), rates=4, epochs=4, batch=32, learning_rate=3e-3, hidden=8, seed=3)


def _fit(stages: Stages, many: np.ndarray, checkpoint: Path | None = None, **changes: Any) -> Trained:
    options = replace(QUICK, **changes)
    return options.fit(*stages, FeatureSet(many, np.arange(len(many))), checkpoint=checkpoint)


def _codec(components: np.ndarray, rates: int, tables: bytes | None) -> TransformCodec:
    return TransformCodec([TensorSpec(WIRE, "float32", ("batch", *components.shape[1:]))], rates, tables)


def _curve(tail: Model, trained: Trained) -> list[tuple[int, float]]:
    """(payload bytes, KL to the unsplit model) of each rate on the held-out samples."""
    crossing = Crossing.of(tail)
    features = crossing.features(tail.held_out)
    exact = encode_all(trained.coders.encoder, crossing, features).numpy()
    codec = _codec(exact, len(trained.steps), trained.tables)
    points = []
    for rate in range(len(trained.steps)):
        payload = codec.encode([exact], rate)
        (decoded,) = codec.decode(payload, [exact.shape], rate)
        with torch.no_grad():
            wanted = flatten_outputs(tail.graph(features))[0].log_softmax(1)
            logits = trained.coders.answer(torch.from_numpy(decoded))[0]
        loss = torch.nn.functional.kl_div(logits.log_softmax(1), wanted, log_target=True, reduction="batchmean")
        points.append((len(payload), float(loss)))
    return points


@pytest.fixture(scope="module")
def closed(token_stages: Stages) -> Squeezed:
    return replace(QUICK, shipped=False).insert(*token_stages)


def test_registry_finds_it() -> None:
    assert BOTTLENECKS.load("tokens") is TokenBottleneck and not TokenBottleneck.needs_training


def test_as_many_vectors_as_tokens_lose_nothing(token_stages: Stages, many_tokens: np.ndarray) -> None:
    tail = token_stages[1]
    crossing, features = token_crossing(tail), torch.from_numpy(many_tokens)
    encoder, decoder = token_coders(tail, crossing, features, features.shape[1], 0.02, 0, 8)
    with torch.no_grad():
        (back,) = decoder(encoder(features[:9]))

    assert torch.allclose(back, features[:9], atol=1e-3 * float(features.abs().max()))


@pytest.mark.parametrize("count", [1, 5, 20])
def test_the_closed_form_is_the_best_mixing_of_positions(
    token_stages: Stages, many_tokens: np.ndarray, count: int
) -> None:
    """A strong regularization makes the metric the identity: what is lost is the sum of the smallest variances."""
    tail = token_stages[1]
    crossing, features = token_crossing(tail), torch.from_numpy(many_tokens)
    encoder, decoder = token_coders(tail, crossing, features, count, 1e9, 0, 8)
    with torch.no_grad():
        lost = float((decoder(encoder(features))[0] - features).double().square().sum())
    rows = (features - features.mean(0)).transpose(1, 2).reshape(-1, features.shape[1]).double()
    best = float(torch.linalg.svdvals(rows)[count:].square().sum())

    assert lost == pytest.approx(best, rel=1e-3)


def test_a_rate_sends_its_first_vectors_alone(token_stages: Stages, closed: Squeezed) -> None:
    head = token_stages[0]
    components = closed.head.forward(head.held_out[0])[WIRE].numpy()
    codec = _codec(components, closed.rates, closed.tables)
    sizes = []
    for rate, count in enumerate((8, 8, 2, 2)):
        payload = codec.encode([components], rate)
        (decoded,) = codec.decode(payload, [components.shape], rate)
        sizes.append(len(payload))
        step = float(codec.layouts[rate].step)

        assert not decoded[:, count:].any() and decoded[:, :count].any()
        assert np.abs(decoded[:, :count] - components[:, :count]).max() <= 1.5 * step
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("counts", "rates", "expected"),
    [((16, 8, 4, 2, 1), 5, [16, 8, 4, 2, 1]), ((4, 1), 3, [4, 4, 1]), ((3,), 2, [3, 3]), ((4, 2, 1), 2, [4, 2])],
)
def test_counts_and_steps_fall_down_the_ladder(counts: tuple[int, ...], rates: int, expected: list[int]) -> None:
    ladder = rungs(counts, [2.0**index for index in range(rates)])

    assert [rung.count for rung in ladder] == expected
    assert ladder[0] == Rung(counts[0], 1.0)


def test_training_spends_fewer_bytes_for_the_same_outputs(token_stages: Stages, many_tokens: np.ndarray) -> None:
    def score(epochs: int) -> float:
        points = _curve(token_stages[1], _fit(token_stages, many_tokens, epochs=epochs))
        return sum(math.log(loss + 1e-6) + math.log(size) for size, loss in points) / len(points)

    assert score(4) < score(0) - 0.1


def test_interrupted_training_gives_the_bytes_of_an_unbroken_one(
    token_stages: Stages, many_tokens: np.ndarray, tmp_path: Path
) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name == "train tokens" and done == 5:
            raise KeyboardInterrupt

    data = FeatureSet(many_tokens[:100], np.arange(100))
    options = replace(QUICK, epochs=3)
    unbroken = options.fit(*token_stages, data)
    with pytest.raises(KeyboardInterrupt):
        options.fit(*token_stages, data, checkpoint=tmp_path, progress=stop)
    resumed = options.fit(*token_stages, data, checkpoint=tmp_path)

    assert resumed.tables == unbroken.tables
    for name, value in unbroken.coders.state_dict().items():
        assert torch.equal(resumed.coders.state_dict()[name], value)


def test_a_folder_of_arrays_trains_without_labels(
    token_stages: Stages, pictures: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    for index, picture in enumerate(pictures(20)):
        np.savez(tmp_path / f"{index:02d}.npz", image=picture.numpy()[None])
    squeezed = replace(QUICK, train=tmp_path, epochs=1, batch=8, shipped=False).insert(*token_stages)

    assert "trained on 15 samples" in squeezed.detail and squeezed.rates == 4


def test_a_checkpoint_gives_the_trained_answers(token_stages: Stages, many_tokens: np.ndarray, tmp_path: Path) -> None:
    head, tail = token_stages
    trained = _fit(token_stages, many_tokens, epochs=1)
    path = save_trained(tmp_path / f"{PREFIX}tiny.json", trained, head, tail, {})
    again = load_trained(path, head, tail, empty_coders)
    components = torch.randn(2, 8, 16)
    with torch.no_grad():
        assert torch.equal(again.coders.answer(components)[0], trained.coders.answer(components)[0])
    assert again.tables == trained.tables and ladder_of(again) == ladder_of(trained)
    assert pretrained(head, tail, tmp_path, PREFIX) == path and pretrained(head, tail, tmp_path) is None


def test_a_checkpoint_of_another_cut_is_refused(
    vit: Model, token_stages: Stages, many_tokens: np.ndarray, tmp_path: Path
) -> None:
    path = save_trained(tmp_path / f"{PREFIX}tiny.json", _fit(token_stages, many_tokens, epochs=0), *token_stages, {})
    captured = Capture()(vit)
    other = split(captured, [find_cut(captured, "blocks.1")])

    assert pretrained(*other, tmp_path, PREFIX) is None
    with pytest.raises(DataError, match="another model or cut"):
        load_trained(path, *other, empty_coders)


def test_exported_stages_answer_as_in_torch(closed: Squeezed, token_stages: Stages, tmp_path: Path) -> None:
    """Artifacts in their runtime, the codec's bytes between them."""
    device, sample = load_device("x86-server"), token_stages[0].held_out[0]
    values = {name: value.numpy() for name, value in sample.items()}
    expected = closed.head.forward(sample)[WIRE].numpy()
    codec = _codec(expected, closed.rates, closed.tables)
    for stage, folder in ((closed.head, "head"), (closed.tail, "tail")):
        (tmp_path / folder).mkdir()
        with OnnxExporter().export(stage, tmp_path / folder, device).open(stage, SessionOptions(threads=1)) as session:
            values = session.run(values)
        if stage is closed.head:
            np.testing.assert_allclose(values[WIRE], expected, atol=1e-3 * np.abs(expected).max())
            # From here on both go through the same symbols.
            payload = codec.encode([expected], 1)
            values = {WIRE: codec.decode(payload, [expected.shape], 1)[0]}
            wanted = closed.tail.forward({WIRE: torch.from_numpy(values[WIRE])})["logits"].numpy()
    np.testing.assert_allclose(values["logits"], wanted, atol=1e-4 * max(1.0, np.abs(wanted).max()))


def test_pictures_across_the_cut_are_an_error(stages: Stages) -> None:
    with pytest.raises(PlanError, match=r"allowed tokens \[B, N, C\]"):
        TokenBottleneck().insert(*stages)


def test_an_open_number_of_tokens_is_an_error(token_stages: Stages) -> None:
    head, tail = token_stages
    name = next(iter(tail.example_inputs))
    loose = tail.evolve_quietly(dynamic={name: {0: "batch", 1: "length"}})
    with pytest.raises(PlanError, match="number of tokens that cross is open"):
        TokenBottleneck().insert(head, loose)


@pytest.mark.parametrize("counts", [(), (51,), (1, 2), (4, 4), (4, 0)])
def test_counts_that_do_not_fit_are_an_error(token_stages: Stages, counts: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="allowed 1 to 50"):
        TokenBottleneck(counts=counts).insert(*token_stages)


def test_too_few_samples_are_an_error(token_stages: Stages, many_tokens: np.ndarray) -> None:
    with pytest.raises(DataError, match="7 training samples, allowed 8"):
        _fit(token_stages, many_tokens[:7])


def test_an_unknown_loss_names_the_nearest(token_stages: Stages, many_tokens: np.ndarray) -> None:
    with pytest.raises(UnknownNameError) as caught:
        _fit(token_stages, many_tokens, loss="distilation")

    assert caught.value.nearest == "distillation"


def test_training_asks_for_an_open_batch(token_stages: Stages, tmp_path: Path) -> None:
    head, tail = (stage.evolve_quietly(dynamic={}) for stage in token_stages)
    with pytest.raises(PlanError, match="training needs batches"):
        replace(QUICK, train=tmp_path, shipped=False).insert(head, tail)


def test_shipped_checkpoint_serves_its_cut_without_training() -> None:
    model, _ = prepare(fashion_vit(), silent)
    head, tail = split(model, [find_cut(model, "blocks.2")])
    stored = pretrained(head, tail, prefix=PREFIX)
    assert stored is not None
    trained = load_trained(stored, head, tail, empty_coders)
    squeezed = TokenBottleneck().insert(head, tail)
    rate = next(index for index, rung in enumerate(ladder_of(trained)) if rung.count == 4)
    right = 0
    for sample, label in zip(model.held_out, model.labels, strict=True):
        components = squeezed.head.forward(sample)[WIRE].numpy()
        codec = _codec(components, squeezed.rates, squeezed.tables)
        (decoded,) = codec.decode(codec.encode([components], rate), [components.shape], rate)
        right += int(squeezed.tail.forward({WIRE: torch.from_numpy(decoded)})["logits"].argmax()) == label

    # 0.86 of all 10,000 test images; of 128, four standard errors below.
    assert squeeze_tokens(head, tail, trained, "").tables == squeezed.tables and right / len(model.labels) > 0.74

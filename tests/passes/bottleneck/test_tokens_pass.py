"""The pass that pools tokens inside an encoder: cheaper, near to the model it came from, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import DataError, SourceError, UsageError
from edgekit.model import Model
from edgekit.passes.bottleneck.tokens_pass import PoolTokens, outputs_of
from edgekit.passes.capture import Capture
from edgekit.progress import silent

Pictures = Callable[..., torch.Tensor]


def test_fewer_tokens_cost_less_and_keep_the_answers_shape(vit: Model, pictures: Pictures) -> None:
    pooled = PoolTokens(block=1, count=4, epochs=0)(vit)
    share = float(pooled.history[-1].detail.rpartition(", ")[2].split()[0])

    assert "50 tokens to 1 + 4 behind block 1" in pooled.history[-1].detail and share < 0.6
    assert outputs_of(pooled, {"image": pictures(3)})[0].shape == (3, 10)


def test_training_comes_nearer_to_the_model_before(vit: Model, pictures: Pictures) -> None:
    step = PoolTokens(block=1, count=4, epochs=4, batch=16, learning_rate=3e-3)
    rough = PoolTokens(block=1, count=4, epochs=0)(vit)
    start = {name: value.clone() for name, value in vit.module.state_dict().items()}
    inputs = {"image": pictures(200, seed=5)}
    unseen = {"image": pictures(64, seed=6)}

    def apart(model: Model) -> float:
        got, want = outputs_of(model, unseen)[0], outputs_of(vit, unseen)[0]
        return float((got.log_softmax(1) - want.log_softmax(1)).square().mean())

    before = apart(rough)
    run = step.fit(vit, rough, inputs, silent)

    assert run.best_epoch > 0 and apart(rough) < 0.6 * before
    for name, value in vit.module.state_dict().items():
        assert torch.equal(value, start[name]), "the model before is left as it was"


def test_interrupted_training_ends_at_the_weights_of_an_unbroken_one(vit: Model, tmp_path: Path) -> None:
    def run(place: Path, progress: Any) -> Model:
        step = PoolTokens(block=2, count=2, epochs=2, batch=16, checkpoint=place)
        return step.apply(vit, progress)[0]

    def stop(name: str, done: int, total: int) -> None:
        if name == "train pooled" and done == 5:
            raise KeyboardInterrupt

    unbroken = run(tmp_path / "one", silent)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "two", stop)
    resumed = run(tmp_path / "two", silent)

    for name, value in unbroken.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], value)


def test_a_folder_of_arrays_trains_it(vit: Model, pictures: Pictures, tmp_path: Path) -> None:
    for index, picture in enumerate(pictures(12)):
        np.savez(tmp_path / f"{index:02d}.npz", image=picture.numpy()[None])
    pooled = PoolTokens(block=1, count=3, train=tmp_path, epochs=1, batch=4)(vit)

    assert "distilled for 1 epochs" in pooled.history[-1].detail


def test_it_captures_into_a_static_graph_with_an_open_batch(vit: Model, pictures: Pictures) -> None:
    pooled = PoolTokens(block=1, count=4, epochs=0)(vit)
    captured = Capture()(pooled)
    images = pictures(5)

    assert torch.allclose(captured.graph(images)[0], outputs_of(pooled, {"image": images})[0], atol=1e-4)


@pytest.mark.parametrize("block", [0, 3])
def test_a_block_that_leaves_nothing_on_one_side_is_an_error(vit: Model, block: int) -> None:
    with pytest.raises(UsageError, match="allowed 1 to 2"):
        PoolTokens(4, block)(vit)


@pytest.mark.parametrize("count", [0, 49])
def test_a_count_that_pools_nothing_or_all_is_an_error(vit: Model, count: int) -> None:
    with pytest.raises(UsageError, match="allowed 1 to 48 of 49"):
        PoolTokens(count, 1)(vit)


def test_a_model_without_attention_is_an_error() -> None:
    model = Model("flat", nn.Linear(4, 2), {"x": torch.zeros(1, 4)}, ("y",))
    with pytest.raises(SourceError, match="no encoder of a known family"):
        PoolTokens(4, 1)(model)


def test_too_few_samples_are_an_error(vit: Model, pictures: Pictures, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", image=pictures(1).numpy())
    with pytest.raises(DataError, match="training samples, allowed 8"):
        PoolTokens(4, 1, train=tmp_path, epochs=1)(vit)


def test_a_family_with_padding_is_an_error() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    module = transformers.BertModel(config).eval()
    model = Model("words", module, {"input_ids": torch.ones(1, 6, dtype=torch.int64)}, ("a", "b"))
    with pytest.raises(UsageError, match="family BERT"):
        PoolTokens(2, 1)(model)

"""Requests of different lengths: in one batch with the same answers, and apart where the model minds."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import SessionError
from edgekit.runtimes.server.batching import Batcher
from edgekit.runtimes.server.padding import Padding, find_padding
from edgekit.runtimes.server.schedule import BatchOptions
from edgekit.tensors import TensorSpec

WIDTH = 4
TABLE = np.random.default_rng(0).standard_normal((50, WIDTH)).astype(np.float32)
INPUTS = (TensorSpec("ids", "int64", ("batch", "tokens")), TensorSpec("attention_mask", "int64", ("batch", "tokens")))
OUTPUTS = (
    TensorSpec("hidden", "float32", ("batch", "tokens", WIDTH)),
    TensorSpec("pooled", "float32", ("batch", WIDTH)),
)
Arrays = Mapping[str, np.ndarray]


class Encoder:
    """Each token sees the mean of those that the mask shows."""

    def __init__(self, *, masked: bool = True) -> None:
        self.masked, self.shapes = masked, list[tuple[int, ...]]()

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        self.shapes.append(feeds["ids"].shape)
        vectors = TABLE[feeds["ids"]]
        shown = (feeds["attention_mask"] if self.masked else np.ones_like(feeds["ids"]))[..., None].astype(np.float32)
        pooled = (vectors * shown).sum(1) / shown.sum(1)
        return {"hidden": vectors + pooled[:, None], "pooled": pooled}


def text(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(1, 50, (1, length))
    return {"ids": ids, "attention_mask": np.ones_like(ids)}


def test_a_model_that_reads_its_mask_is_found() -> None:
    assert find_padding(Encoder(), INPUTS, OUTPUTS) == Padding({"ids": 1, "attention_mask": 1}, {"hidden": 1})


def test_a_model_that_does_not_is_left_alone_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert find_padding(Encoder(masked=False), INPUTS, OUTPUTS) is None
    assert "run apart" in caplog.text


@pytest.mark.parametrize(
    "inputs",
    [
        INPUTS[:1],
        (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("attention_mask", "int64", ("batch", 3))),
        (INPUTS[0], TensorSpec("attention_mask", "int64", ("batch", "others"))),
        (INPUTS[0], TensorSpec("attention_mask", "int64", ("batch", "tokens", "tokens"))),
    ],
    ids=["no mask", "no open length", "two lengths", "a square mask"],
)
def test_without_one_open_length_and_a_mask_nothing_is_tried(inputs: tuple[TensorSpec, ...]) -> None:
    def run(feeds: Arrays) -> Arrays:
        raise AssertionError("it was run")

    assert find_padding(run, inputs, OUTPUTS) is None


def test_a_model_that_cannot_be_tried_is_left_alone() -> None:
    def run(feeds: Arrays) -> Arrays:
        raise SessionError("out of range")

    assert find_padding(run, INPUTS, OUTPUTS) is None


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_joined_and_cut_each_answer_is_that_of_the_request_alone(lengths: list[int]) -> None:
    padding = Padding({"ids": 1, "attention_mask": 1}, {"hidden": 1})
    texts = [text(length, seed) for seed, length in enumerate(lengths)]
    together = Encoder()(padding.join(texts))
    for row, feeds in enumerate(texts):
        for name, wanted in Encoder()(feeds).items():
            got = padding.cut(name, together[name][row : row + 1], feeds)
            assert got.shape == wanted.shape
            # sums of up to 40 float32 values of about 3, in another order
            np.testing.assert_allclose(got, wanted, atol=40 * 3 * 2.0**-24)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_lengths_of_one_kind_differ_by_less_than_half(one: int, other: int) -> None:
    padding = Padding({"ids": 1, "attention_mask": 1}, {})
    feeds = [{"ids": np.empty((1, n)), "attention_mask": np.empty((1, n))} for n in (one, other)]
    if padding.kind(feeds[0]) == padding.kind(feeds[1]):
        assert max(one, other) < 1.5 * min(one, other) + 1
    if one == other:
        assert padding.kind(feeds[0]) == padding.kind(feeds[1])


def test_a_batcher_runs_neighbouring_lengths_together_and_others_apart() -> None:
    model = Encoder()
    padding = find_padding(Encoder(), INPUTS, OUTPUTS)
    batcher = Batcher("m", [[model]], True, BatchOptions(max_batch=8), padding=padding)
    texts = [text(length, length) for length in (9, 30, 11, 12, 31)]
    answers = batcher.infer(texts)
    batcher.close()
    assert sorted(model.shapes) == [(2, 31), (3, 12)]
    for feeds, answer in zip(texts, answers, strict=True):
        np.testing.assert_allclose(answer.outputs["hidden"], Encoder()(feeds)["hidden"], atol=1e-5)
        assert answer.outputs["hidden"].shape == (1, feeds["ids"].shape[1], WIDTH)

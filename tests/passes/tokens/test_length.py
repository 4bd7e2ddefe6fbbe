"""Inputs of any length become inputs of one, and what is content stays content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.data import tokenize
from edgekit.errors import DataError, UsageError
from edgekit.model import Model, Sample
from edgekit.passes.tokens.length import FixLength
from edgekit.passes.tokens.prune import PruneTokens

from .test_prune import MeanOfTokens, text_model

OPEN = {0: "batch", 1: "sequence"}


def sample(length: int) -> Sample:
    return {"ids": torch.arange(1, length + 1)[None], "mask": torch.ones(1, length, dtype=torch.long)}


def loose(*lengths: int) -> Model:
    torch.manual_seed(0)
    samples = tuple(sample(length) for length in lengths)
    return Model(
        name="text",
        module=MeanOfTokens().eval(),
        example_inputs=samples[0],
        output_names=("embedding",),
        calibration=samples,
        dynamic={"ids": dict(OPEN), "mask": dict(OPEN)},
    )


def test_without_a_number_the_longest_sample_decides_and_answers_stay() -> None:
    model = loose(5, 12, 9)
    fixed = FixLength()(model)

    assert {value.shape for one in fixed.calibration for value in one.values()} == {(1, 12)}
    assert [int(one["mask"].sum()) for one in fixed.calibration] == [5, 12, 9]
    assert fixed.dynamic == {"ids": {0: "batch"}, "mask": {0: "batch"}}
    assert "sequence fixed at 12" in fixed.history[-1].detail
    for before, after in zip(model.calibration, fixed.calibration, strict=True):
        want, got = model.forward(before)["embedding"], fixed.forward(after)["embedding"]
        assert torch.allclose(want, got, atol=1e-5)


def test_longer_samples_are_cut_and_it_is_told() -> None:
    fixed = FixLength(8)(loose(5, 12, 9))
    assert fixed.calibration[1]["ids"].tolist() == [list(range(1, 9))]
    assert "2 samples cut" in fixed.history[-1].detail


def test_the_given_model_is_left_as_it_was() -> None:
    model = loose(5, 12)
    FixLength(8)(model)
    assert [one["ids"].shape[1] for one in model.calibration] == [5, 12]


@pytest.mark.parametrize("method", ["merge", "accumulated"])
def test_padding_is_pruned_before_content_once_the_length_is_fixed(method: str) -> None:
    """Behind the first block 7 of 12 tokens stay, and the sample has 7: its answer hardly changes."""
    model = loose(12, 7)
    pruned = PruneTokens(method, keep=(9, 8, 7))(FixLength()(model))
    padded = pruned.calibration[1]
    want, got = model.forward(model.calibration[1])["embedding"], pruned.forward(padded)["embedding"]
    assert torch.nn.functional.cosine_similarity(want, got).item() > 0.999


@pytest.mark.parametrize("length", [6, 16])
def test_samples_of_a_tokenizer_end_as_it_would_end_them(tmp_path: Path, length: int) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", *"abcdefgh"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    names = ("input_ids", "attention_mask")
    lines = ["a b c d e f g h", "a b"]
    long, wanted = (tokenize(lines, path, names, size) for size in (12, length))
    model = Model(
        name="ids",
        module=Ids(),
        example_inputs=long[0],
        output_names=("sum",),
        calibration=tuple(long),
        dynamic={name: dict(OPEN) for name in names},
        tokenizer=path,
    )
    fixed = FixLength(length)(model)
    for got, want in zip(fixed.calibration, wanted, strict=True):
        assert all(torch.equal(got[name], want[name]) for name in names)


class Ids(nn.Module):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return (input_ids * attention_mask).sum(1, keepdim=True).float()


def test_a_model_of_one_length_is_refused() -> None:
    with pytest.raises(UsageError, match="open lengths none"):
        FixLength(8)(text_model({}))


def test_a_length_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="allowed 2 or more"):
        FixLength(1)(loose(5))


def test_samples_that_no_mask_tells_apart_are_not_padded() -> None:
    model = replace(
        loose(5, 9),
        module=nn.Identity(),
        example_inputs={"ids": torch.ones(1, 5)},
        calibration=({"ids": torch.ones(1, 9)},),
        dynamic={"ids": dict(OPEN)},
    )
    with pytest.raises(DataError, match="no input is a mask"):
        FixLength()(model)


def test_a_sample_without_content_is_refused() -> None:
    model = loose(5, 9)
    empty = {"ids": torch.ones(1, 9, dtype=torch.long), "mask": torch.zeros(1, 9, dtype=torch.long)}
    with pytest.raises(DataError, match="no content"):
        FixLength()(replace(model, calibration=(*model.calibration, empty)))

"""Tokens of a number in a whole export: pooled, for a query, frames of a clip; and what is refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.bundle import Bundle
from edgekit.errors import SourceError, UnknownNameError, UsageError
from edgekit.model import Model, Sample
from edgekit.parity import run_model
from edgekit.passes.bottleneck.tokens_pass import PoolTokens
from edgekit.passes.tokens.frames import ClipEncoder, SelectFrames
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.passes.tokens.query import CompressByQuery, QueryReader
from edgekit.pipeline import export_recipe
from edgekit.progress import silent
from edgekit.recipe import Recipe
from edgekit.registry import TOKEN_COMPRESSORS
from edgekit.runtimes.load import load
from edgekit.shrinking import check_shrinking
from edgekit.token_compression import compress_tokens, parse
from edgekit.zoo.fashion import fashion_vit


@pytest.fixture(scope="module")
def vit() -> Model:
    found = fashion_vit()
    return replace(found, calibration=found.calibration[:32], held_out=found.held_out[:16], labels=found.labels[:16])


@pytest.fixture(scope="module")
def clips(vit: Model) -> Model:
    """Four frames of two pictures each."""
    pictures = [sample["image"] for sample in vit.held_out]
    samples: list[Sample] = [
        {"clip": torch.cat([first, first, first, second]).unsqueeze(0)}
        for first, second in zip(pictures[::2], pictures[1::2], strict=True)
    ]
    module = ClipEncoder(vit.module).eval()
    return Model("clips", module, samples[0], ("logits",), held_out=tuple(samples), calibration=tuple(samples[:2]))


class See(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net.blocks(self.net.embed(image))  # type: ignore[no-any-return]


class Read(nn.Module):
    """How well the query fits the token that it fits best."""

    def forward(self, tokens: Tensor, query: Tensor) -> Tensor:
        return (tokens @ query.unsqueeze(2)).squeeze(2).softmax(1).unsqueeze(1) @ tokens.mean(2, keepdim=True)


@pytest.fixture(scope="module")
def reader(vit: Model) -> Model:
    see = See(vit.module)
    with torch.no_grad():
        width = see(vit.example_inputs["image"]).shape[2]
    made = torch.Generator().manual_seed(0)
    samples = [{"image": one["image"], "query": torch.randn(1, width, generator=made)} for one in vit.calibration]
    module = QueryReader(see, Read(), protected=1).eval()
    fitted, judged = tuple(samples[:24]), tuple(samples[24:])
    return Model("reader", module, samples[0], ("score",), calibration=fitted, held_out=judged)


def recipe(**options: Any) -> Recipe:
    usual = {"source": "net", "device": "x86-server", "format": "onnx", "quantize": "none", "max_drop": 100.0}
    return Recipe.of({**usual, "report": False, **options})


def export(model: Model, place: Path, **options: Any) -> Bundle:
    return export_recipe(recipe(output=str(place / "made.edgekit"), **options), module=model).bundle  # type: ignore[arg-type]


def answers(bundle: Bundle, model: Model) -> np.ndarray:
    with load(bundle, threads=1) as session:
        rows = [session.run({name: value.numpy() for name, value in sample.items()}) for sample in model.held_out]
    return np.concatenate([row[model.output_names[0]] for row in rows])


def test_chosen_frames_and_merged_tokens_in_one_export(clips: Model, tmp_path: Path) -> None:
    bundle = export(clips, tmp_path, compress_tokens="frames@2", prune_tokens="merge@0.8")
    want = run_model(PruneTokens("merge", 0.8)(SelectFrames(2)(clips)), clips.held_out)["logits"]

    assert [line.name for line in bundle.manifest.history][:2] == ["SelectFrames", "PruneTokens"]
    assert np.abs(answers(bundle, clips) - want).max() < 1e-3


def test_a_reader_reads_few_tokens_for_its_query(reader: Model, tmp_path: Path) -> None:
    bundle = export(reader, tmp_path, compress_tokens="query@9", epochs=1)
    want = run_model(CompressByQuery(9, epochs=1)(reader), reader.held_out)["score"]

    assert "49 visual tokens to 9 by query" in bundle.manifest.history[0].detail
    assert np.abs(answers(bundle, reader) - want).max() < 1e-3


def test_pooled_tokens_learn_from_the_whole_model(vit: Model, tmp_path: Path) -> None:
    bundle = export(vit, tmp_path, compress_tokens="pool@16", epochs=1)
    want = run_model(PoolTokens(16, epochs=1)(vit), vit.held_out)["logits"]

    assert "50 tokens to 1 + 16 behind block 3" in bundle.manifest.history[0].detail
    assert np.abs(answers(bundle, vit) - want).max() < 1e-3


def test_the_loss_is_counted_from_the_whole_model(clips: Model, tmp_path: Path) -> None:
    result = export_recipe(
        recipe(output=str(tmp_path / "made.edgekit"), compress_tokens="frames@1"),
        module=clips,  # type: ignore[arg-type]
    )
    whole, one = (run_model(model, clips.held_out)["logits"] for model in (clips, SelectFrames(1)(clips)))
    noise = 10 * np.log10(np.square(whole).sum() / np.square(one - whole).sum())
    assert result.summary["quality"]["sqnr_db"] == pytest.approx(noise, abs=0.1)


def test_a_number_reaches_the_pass_with_the_options_that_it_has() -> None:
    step = parse("pool@4", epochs=2, seed=7, train=None, checkpoint=Path("place"))
    assert step == PoolTokens(4, epochs=2, seed=7, checkpoint=Path("place"))
    assert parse("query@16", epochs=2, seed=7, train=Path("photos")) == CompressByQuery(16, epochs=2, seed=7)
    assert parse("frames@8", epochs=2, seed=7) == SelectFrames(8)
    assert all(parse(f"{name}@4") for name in TOKEN_COMPRESSORS)


@pytest.mark.parametrize("asked", ["pool", "pool@", "pool@0", "pool@-4", "query@1.5", "frames@all"])
def test_a_number_that_cannot_be_is_told(asked: str) -> None:
    with pytest.raises(UsageError, match="allowed 1 and more"):
        check_shrinking(recipe(compress_tokens=asked))


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        check_shrinking(recipe(compress_tokens="pol@4"))
    assert caught.value.nearest == "pool"


@pytest.mark.parametrize("other", [{"prune_tokens": "merge@0.7"}, {"limit": "latency=1ms"}])
def test_pooled_tokens_are_not_pruned_too(other: dict[str, str], vit: Model) -> None:
    with pytest.raises(UsageError, match="--compress-tokens pool@4 with"):
        check_shrinking(recipe(compress_tokens="pool@4", **other))
    pooled = PoolTokens(4, epochs=0)(vit)
    with pytest.raises(UsageError, match="pruned already, or pooled"):
        PruneTokens()(pooled)
    with pytest.raises(UsageError, match="fewer already"):
        PoolTokens(4, epochs=0)(pooled)


def test_a_model_of_another_kind_is_refused(vit: Model, tmp_path: Path) -> None:
    for asked, told in (("frames@2", "allowed a ClipEncoder"), ("query@9", "allowed a QueryReader")):
        with pytest.raises(SourceError, match=told):
            compress_tokens(recipe(compress_tokens=asked), vit, tmp_path, silent)
    trained = vit.evolve_quietly(onnx_path=tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"trained \.onnx file"):
        compress_tokens(recipe(compress_tokens="pool@4"), trained, tmp_path, silent)

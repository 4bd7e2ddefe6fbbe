"""The split flow on a trained net: stages for two and three tiers, ladders, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import PlanError, UnknownNameError, UsageError
from edgekit.model import Model
from edgekit.passes.bottleneck.vector import VectorBottleneck
from edgekit.pipeline import export_recipe
from edgekit.recipe import Recipe
from edgekit.report.model import EvaluationReport
from edgekit.runtimes.codecs.base import open_codec
from edgekit.runtimes.load import load
from edgekit.splitting import refuse_idle_training
from edgekit.zoo.fashion import fashion_cnn


@pytest.fixture(scope="module")
def model() -> Model:
    """Half of the judged images is enough here."""
    found = fashion_cnn()
    return replace(found, held_out=found.held_out[:48], labels=found.labels[:48])


def export(model: Model, output: Path, **options: object) -> Bundle:
    values = {
        "source": model.name, "device": "raspberry-pi-4", "edge": "x86-server", "format": "onnx", "quantize": "none",
        "bottleneck": "transform", "max_drop": 3.0, "report": False, "output": str(output), **options,
    }  # fmt: skip
    return export_recipe(Recipe.of(values), module=model).bundle  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("split") / "fashion.edgekit"
    return export(model, output, cloud="x86-server")


def variant_named(bundle: Bundle, prefix: str) -> str:
    return next(variant.name for variant in bundle.manifest.variants if variant.name.startswith(prefix))


def test_the_bundle_holds_local_offload_split_raw_and_three_tier_variants(bundle: Bundle) -> None:
    kinds = {variant.name.split("-")[0] for variant in bundle.manifest.variants}
    assert {"offload", "split", "raw", "three"} <= kinds
    assert bundle.manifest.tiers == {"edge": "x86-server", "cloud": "x86-server"}
    first = bundle.manifest.variants[0]
    assert not first.codecs and bundle.manifest.part(first.parts[0]).tier == "device"


def test_every_ladder_gets_cheaper_from_rate_to_rate(bundle: Bundle) -> None:
    for codec in bundle.manifest.codecs:
        if codec.kind == "transform":
            sizes = [rate.bytes_mean for rate in codec.rates]
            assert len(sizes) >= 8
            assert sizes == sorted(sizes, reverse=True)


def test_the_finest_rate_keeps_the_limit(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        if variant.name.startswith("split-"):
            assert bundle.manifest.codec(variant.codecs[0]).rates[0].drop <= 3.0


def test_head_codec_and_tail_answer_like_the_whole_model(bundle: Bundle, model: Model) -> None:
    manifest = bundle.manifest
    variant = manifest.variant(variant_named(bundle, "split-"))
    entry = manifest.codec(variant.codecs[0])
    assert entry.tables is not None
    codec = open_codec(entry, bundle.asset_path(entry.tables).read_bytes())
    head, tail = (load(bundle, part=name, threads=1) for name in variant.parts)
    agreed = 0
    with head, tail:
        for sample in model.held_out:
            features = head.run({key: value.numpy() for key, value in sample.items()})
            arrays = [features[spec.name] for spec in codec.features]
            back = codec.decode(codec.encode(arrays, 0), [array.shape for array in arrays], 0)
            answer = tail.run(dict(zip([spec.name for spec in tail.inputs], back, strict=True)))
            want = model.forward(sample)
            agreed += int(np.argmax(next(iter(answer.values()))) == int(next(iter(want.values())).argmax()))
    stated = entry.rates[0].agreement
    assert stated is not None
    assert agreed / len(model.held_out) == pytest.approx(stated, abs=1e-4)  # as rounded in the manifest


def test_the_report_lists_each_variant_at_each_rate(bundle: Bundle) -> None:
    rows = EvaluationReport.from_json(bundle.report).split
    for variant in bundle.manifest.variants:
        if variant.name.startswith(("split-", "offload")):
            codec = bundle.manifest.codec(variant.codecs[0])
            assert [row.rate for row in rows if row.variant == variant.name] == list(range(len(codec.rates)))


def test_notes_name_a_cut_as_the_variants_do(bundle: Bundle) -> None:
    notes = EvaluationReport.from_json(bundle.report).notes
    named = {note.removeprefix("cut ").partition(",")[0].partition(":")[0] for note in notes if note.startswith("cut ")}
    assert named
    assert named <= {variant.name.partition("-")[2] for variant in bundle.manifest.variants}


def test_an_unknown_cut_names_the_known_ones(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        export(model, tmp_path / "no.edgekit", split="blocks.99")
    assert caught.value.known
    assert not list(tmp_path.iterdir())


def test_a_cut_that_cannot_keep_the_limit_is_refused_and_says_what_binds(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two codewords for everything that crosses: no model survives that."""
    coarse = partial(VectorBottleneck, axes=1, groups=1, stages=1, codewords=2, rates=1, refine_epochs=1)
    monkeypatch.setattr("edgekit.passes.bottleneck.vector.VectorBottleneck", coarse)
    with pytest.raises(PlanError) as caught:
        export(model, tmp_path / "no.edgekit", split="features.5", max_drop=1.0, bottleneck="vector")
    assert caught.value.binding == "max_drop"
    assert "loses" in caught.value.message
    assert not list(tmp_path.iterdir())


def test_split_none_packs_the_whole_model_for_the_server_alone(model: Model, tmp_path: Path) -> None:
    found = export(model, tmp_path / "whole.edgekit", split="none").manifest
    assert [part.tier for part in found.parts] == ["device", "edge"]
    assert [variant.name for variant in found.variants][1:] == ["offload"]


@pytest.mark.parametrize(
    ("options", "told"),
    [({"bottleneck": "transform"}, "--train with --bottleneck transform"), ({"split": "none"}, "--train with --split")],
)
def test_training_data_of_which_nothing_learns_are_refused(options: dict[str, str], told: str) -> None:
    recipe = Recipe("net", "raspberry-pi-4", edge="x86-server", train="photos", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=told):
        refuse_idle_training(recipe)
    for other in ({"bottleneck": "auto", "split": "auto"}, {"bottleneck": "tokens", "split": "auto"}):
        refuse_idle_training(replace(recipe, **other))
    refuse_idle_training(replace(recipe, prune_weights="vib"))

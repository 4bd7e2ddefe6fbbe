"""`--prune-weights` from the option to the artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.errors import DataError, QualityError, SourceError, UnknownNameError, UsageError
from edgekit.model import Model
from edgekit.parity import judge, run_model
from edgekit.progress import silent
from edgekit.weight_pruning import parse, prune_weights, training_samples
from edgekit.zoo.fashion import fashion_cnn, fashion_vit

MINUTES = 0.02


@pytest.fixture(scope="module")
def vit() -> Model:
    return fashion_vit()


def _prune(
    model: Model, asked: str, max_drop: float = 1.0, train: str | None = None, minutes: float = MINUTES
) -> Model:
    return prune_weights(model, asked, minutes=minutes, train=train, max_drop=max_drop, progress=silent)


def test_a_method_may_name_its_share() -> None:
    assert parse("vib") == ("vib", 0.5)
    assert parse("layers@0.75") == ("layers", 0.75)


@pytest.mark.parametrize("asked", ["", "VIB", "best@0.5", "vib:0.5", "auto@0.5"])
def test_unknown_methods_are_told_with_the_known_ones(vit: Model, asked: str) -> None:
    with pytest.raises(UnknownNameError, match="weight method"):
        _prune(vit, asked)


@pytest.mark.parametrize("asked", ["vib@", "vib@0", "vib@1.2", "vib@0.5.5", "vib@nan", "vib@-1", "layers@0.1"])
def test_shares_that_cannot_be_are_told(vit: Model, asked: str) -> None:
    with pytest.raises(UsageError, match=r"allowed|at least"):
        _prune(vit, asked)


@pytest.mark.parametrize("asked", ["vib@0.7", "magnitude@0.7"])
def test_one_example_is_nothing_to_learn_from(vit: Model, asked: str) -> None:
    bare = replace(vit, calibration=(), held_out=(), labels=())
    with pytest.raises(DataError, match="no inputs to learn from") as caught:
        _prune(bare, asked)
    assert "--train" in caught.value.hint
    assert _prune(bare, "magnitude@0.7", minutes=0).size_bytes < vit.size_bytes


def test_none_gives_the_same_model(vit: Model) -> None:
    assert _prune(vit, "none") is vit


def test_auto_goes_as_far_as_half_of_what_may_be_lost(vit: Model) -> None:
    loose = _prune(vit, "auto", 30.0)
    assert loose.size_bytes < 0.8 * vit.size_bytes
    held = vit.calibration[3::4]
    lost = judge(replace(vit, labels=()), run_model(vit, held), run_model(loose, held)).drop
    assert lost <= 15


def test_auto_that_finds_nothing_says_so(vit: Model) -> None:
    features = replace(vit, postprocess=None)  # judged by the cosine, which any pruning lowers
    with pytest.raises(QualityError, match="no weight pruning"):
        _prune(features, "auto", 0.0)
    with pytest.raises(DataError, match="no calibration samples"):
        _prune(replace(vit, calibration=()), "auto")


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(SourceError, match="no encoder"):
        _prune(fashion_cnn(), "auto")


def test_a_folder_or_a_text_file_is_trained_on(vit: Model, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", image=np.concatenate([s["image"].numpy() for s in vit.calibration[:12]]))
    assert len(training_samples(vit, str(tmp_path))) == 12
    pruned = _prune(vit, "magnitude@0.7", train=str(tmp_path))
    assert "on 12 samples" in pruned.history[-1].detail
    with pytest.raises(DataError, match="no calibration data"):
        _prune(vit, "magnitude@0.7", train=str(tmp_path / "missing"))


def test_no_minutes_leave_what_was_cut(vit: Model) -> None:
    assert "recovery" not in _prune(vit, "magnitude@0.7", minutes=0).history[-1].detail


@pytest.mark.parametrize("format", ["onnx", "litert", "executorch"])
def test_the_artifact_is_smaller_and_answers_as_the_pruned_model(format: str, tmp_path: Path, vit: Model) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "litert": "ai_edge_litert", "executorch": "executorch"}[format])
    options = {"device": "raspberry-pi-5", "format": format, "quantize": "none", "report": False}
    asked = {"prune_weights": "magnitude@0.6", "recover": 0.0, "max_drop": 50.0}
    small = edgekit.export("fashion-vit", output=str(tmp_path / "small.edgekit"), **options, **asked)
    assert small.manifest.parts[0].size_bytes < 0.85 * vit.size_bytes  # the graph included
    assert any(line.name == "PruneWeights" for line in small.manifest.history)
    pruned = _prune(fashion_vit(), "magnitude@0.6", minutes=0)
    sample = vit.held_out[0]
    with edgekit.load(small) as session:
        got = session.run({"image": sample["image"].numpy()})["logits"]
    assert np.abs(got - pruned.forward(sample)["logits"].numpy()).max() < 1e-2


def test_an_interrupted_export_goes_on_with_its_recovery(tmp_path: Path) -> None:
    options = {"device": "raspberry-pi-5", "format": "onnx", "prune_weights": "magnitude@0.6", "recover": 0.05}
    seen: list[int] = []

    def until_half(step: str, done: int, total: int) -> None:
        if step == "recover" and done >= 500:
            raise KeyboardInterrupt

    def until_recovered(step: str, done: int, total: int) -> None:
        seen.append(done) if step == "recover" else None
        if seen and step == "capture":
            raise KeyboardInterrupt  # what follows is not of this test

    for progress in (until_half, until_recovered):
        with pytest.raises(KeyboardInterrupt):
            edgekit.export("fashion-vit", output=str(tmp_path / "a.edgekit"), progress=progress, **options)
    assert seen[0] >= 500 and seen[-1] == 1000


def test_the_quality_is_counted_from_the_whole_model(tmp_path: Path) -> None:
    """A tenth of the net answers at random: the gate sees it, though the artifact is exact."""
    with pytest.raises(QualityError, match="allowed"):
        edgekit.export(
            "fashion-vit",
            device="raspberry-pi-5",
            format="onnx",
            quantize="none",
            prune_weights="magnitude@0.2",
            recover=0.0,
            max_drop=1.0,
            output=str(tmp_path / "vit.edgekit"),
        )
    assert not (tmp_path / "vit.edgekit").exists()

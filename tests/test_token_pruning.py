"""`--prune-tokens` from the option to the artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.errors import QualityError, SourceError, UnknownNameError, UsageError
from edgekit.model import Model
from edgekit.parity import judge, run_model
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.quantizers.quantize import QuantizerOptions, quantize, simulate
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.token_pruning import parse, prune_tokens
from edgekit.zoo.fashion import fashion_cnn, fashion_vit


@pytest.fixture(scope="module")
def vit() -> Model:
    return fashion_vit()


def test_a_method_may_name_its_share() -> None:
    assert (parse("merge").method, parse("merge").flops) == ("merge", 0.7)
    assert (parse("class@0.85").method, parse("class@0.85").flops) == ("class", 0.85)


@pytest.mark.parametrize("asked", ["", "Merge", "best@0.5", "merge:0.5", "auto@0.5"])
def test_unknown_methods_are_told_with_the_known_ones(asked: str) -> None:
    with pytest.raises(UnknownNameError, match="token method"):
        parse(asked)


@pytest.mark.parametrize(
    "asked", ["merge@", "merge@0", "merge@1.2", "merge@0.5.5", "merge@nan", "merge@-1", "merge@0.05"]
)
def test_shares_that_cannot_be_are_told(vit: Model, asked: str) -> None:
    with pytest.raises(UsageError, match=r"allowed|at least"):
        prune_tokens(vit, asked, 1.0, silent)


def test_none_gives_the_same_model(vit: Model) -> None:
    assert prune_tokens(vit, "none", 1.0, silent) is vit


def test_auto_takes_the_strongest_within_half_of_what_may_be_lost(vit: Model) -> None:
    reference = run_model(vit, vit.calibration)
    loose, tight = (prune_tokens(vit, "auto", allowed, silent) for allowed in (8.0, 2.0))
    for pruned, allowed in ((loose, 8.0), (tight, 2.0)):
        lost = judge(replace(vit, labels=()), reference, run_model(pruned, vit.calibration)).drop
        assert lost <= allowed / 2
    assert _share(loose) < _share(tight) < 0.96


def _share(model: Model) -> float:
    return float(model.history[-1].detail.rpartition(", ")[2].split()[0])


def test_auto_that_finds_nothing_says_so(vit: Model) -> None:
    features = replace(vit, postprocess=None)  # judged by the cosine, which any pruning lowers
    with pytest.raises(QualityError, match="no token pruning"):
        prune_tokens(features, "auto", 0.0, silent)


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(SourceError, match="no encoder"):
        prune_tokens(fashion_cnn(), "auto", 1.0, silent)


@pytest.mark.parametrize(("format", "method"), [("onnx", "merge"), ("litert", "class"), ("executorch", "merge")])
def test_the_artifact_answers_as_the_pruned_model(format: str, method: str, tmp_path: Path, vit: Model) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "litert": "ai_edge_litert", "executorch": "executorch"}[format])
    output = tmp_path / "vit.edgekit"
    bundle = edgekit.export(
        "fashion-vit",
        device="raspberry-pi-5",
        format=format,
        quantize="none",
        prune_tokens=f"{method}@0.8",
        max_drop=6.0,
        output=str(output),
    )
    assert any(line.name == "PruneTokens" for line in bundle.manifest.history)
    pruned = prune_tokens(fashion_vit(), f"{method}@0.8", 3.0, silent)
    sample = vit.held_out[0]
    with edgekit.load(bundle) as session:
        got = session.run({"image": sample["image"].numpy()})["logits"]
    assert np.abs(got - pruned.forward(sample)["logits"].numpy()).max() < 1e-2


def test_the_quality_is_counted_from_the_whole_model(tmp_path: Path) -> None:
    """Half of the work is too little for this small net: the gate sees it, though the artifact is exact."""
    with pytest.raises(QualityError, match="allowed"):
        edgekit.export(
            "fashion-vit",
            device="raspberry-pi-5",
            format="onnx",
            quantize="none",
            prune_tokens="class@0.55",
            max_drop=0.1,
            output=str(tmp_path / "vit.edgekit"),
        )
    assert not (tmp_path / "vit.edgekit").exists()


def test_a_pruned_model_survives_static_integers(vit: Model) -> None:
    """Rows merge otherwise once they are rounded: rounding must not be learned from rows that do not correspond."""
    pruned, _ = prepare(prune_tokens(vit, "merge@0.8", 3.0, silent), silent)
    rounded = simulate(quantize(pruned, "int8", ONNX_X86, QuantizerOptions(), (), silent))
    truth = np.asarray(vit.labels)
    before, after = ((run_model(m, vit.held_out)["logits"].argmax(1) == truth).mean() for m in (pruned, rounded))
    assert after >= before - 0.04

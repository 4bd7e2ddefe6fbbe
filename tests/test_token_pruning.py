"""`--prune-tokens` from the option to the artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit.devices.device import load_device
from edgekit.errors import QualityError, SourceError, UnknownNameError, UsageError
from edgekit.model import Model
from edgekit.parity import judge, run_model
from edgekit.passes.capture import Capture
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.pipeline import prepare
from edgekit.progress import Progress, silent
from edgekit.quantizers.quantize import QuantizerOptions, quantize, simulate
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.registry import EXPORTERS
from edgekit.report.html import render
from edgekit.report.model import EvaluationReport
from edgekit.token_pruning import LEAST, MOST, Trial, fix_length, parse, parse_heads, prune_heads, prune_tokens
from edgekit.whole import decline
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


class Counted(PruneTokens):
    """Tells how many samples a trial looked at."""

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        pruned, told = super().apply(model, progress)
        pruned.module.register_forward_hook(lambda module, args, answer: SEEN.append(len(answer)))
        SEEN.clear()
        return pruned, told


SEEN: list[int] = []


def test_a_trial_ends_where_its_first_samples_leave_no_doubt(vit: Model) -> None:
    trial = Trial(vit, 0.5)
    assert not trial.fits(Counted("class", LEAST))
    assert sum(SEEN) <= len(trial.samples) / 2


def test_what_is_chosen_was_judged_on_all_samples(vit: Model) -> None:
    trial = Trial(vit, 50.0)
    assert trial.confirmed([Counted("merge", MOST)]) == Counted("merge", MOST)
    assert sum(SEEN) == len(trial.samples) == 128


def test_the_first_samples_of_a_trial_come_from_everywhere(vit: Model) -> None:
    places = [next(i for i, one in enumerate(vit.calibration) if one is sample) for sample in Trial(vit, 1.0).samples]
    assert sorted(places) == list(range(128))
    assert max(places[:16]) - min(places[:16]) > 100


def test_heads_go_by_share_or_as_many_as_may(vit: Model) -> None:
    assert "24 heads to 18" in prune_heads(vit, "0.75", 1.0, silent).history[-1].detail
    spared = prune_heads(vit, "auto", 8.0, silent)
    reference = run_model(vit, vit.calibration)
    assert judge(replace(vit, labels=()), reference, run_model(spared, vit.calibration)).drop <= 2.0
    assert spared.history[-1].name == "PruneHeads"
    assert prune_heads(vit, "none", 1.0, silent) is vit
    features = replace(vit, postprocess=None)
    assert prune_heads(features, "auto", 0.0, silent) is features


@pytest.mark.parametrize("asked", ["", "0", "1.5", "most", "0.5.5", "nan"])
def test_shares_of_heads_that_cannot_be_are_told(asked: str) -> None:
    with pytest.raises(UsageError, match="allowed auto, none, or above 0 to 1"):
        parse_heads(asked)


def test_auto_that_finds_nothing_says_so(vit: Model) -> None:
    features = replace(vit, postprocess=None)  # judged by the cosine, which any pruning lowers
    with pytest.raises(QualityError, match="no token pruning"):
        prune_tokens(features, "auto", 0.0, silent)


def test_a_network_without_attention_is_refused() -> None:
    for prune in (prune_tokens, prune_heads):
        with pytest.raises(SourceError, match="no encoder of a known family, allowed one of: ViT and DeiT") as told:
            prune(fashion_cnn(), "auto", 1.0, silent)
        assert told.value.exit_code == 3


@pytest.mark.parametrize(
    ("format", "method", "heads"),
    [("onnx", "merge", "0.8"), ("litert", "class", "none"), ("executorch", "merge", "0.8")],
)
def test_the_artifact_answers_as_the_pruned_model(
    format: str, method: str, heads: str, tmp_path: Path, vit: Model
) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "litert": "ai_edge_litert", "executorch": "executorch"}[format])
    output = tmp_path / "vit.edgekit"
    bundle = edgekit.export(
        "fashion-vit",
        device="raspberry-pi-5",
        format=format,
        quantize="none",
        prune_tokens=f"{method}@0.8",
        prune_heads=heads,
        max_drop=6.0,
        output=str(output),
    )
    passes = [line.name for line in bundle.manifest.history]
    assert "PruneTokens" in passes and ("PruneHeads" in passes) == (heads != "none")
    pruned = prune_tokens(prune_heads(fashion_vit(), heads, 3.0, silent), f"{method}@0.8", 3.0, silent)
    sample = vit.held_out[0]
    with edgekit.load(bundle) as session:
        got = session.run({"image": sample["image"].numpy()})["logits"]
    assert np.abs(got - pruned.forward(sample)["logits"].numpy()).max() < 1e-2


def test_the_whole_model_stands_beside_the_pruned_one(tmp_path: Path) -> None:
    """This net is so small that merging costs more than it saves."""
    bundle = edgekit.export(
        "fashion-vit",
        device="x86-server",
        format="onnx",
        quantize="int8-dynamic",
        prune_tokens="class@0.7",
        max_drop=6.0,
        output=str(tmp_path / "vit.edgekit"),
    )
    report = EvaluationReport.from_json(bundle.report)
    whole = {one.precision: one for one in report.candidates if one.whole}
    (chosen,) = (one for one in report.candidates if one.chosen)
    assert set(whole) == {"fp32", "int8-dynamic"} and not chosen.whole
    assert all(one.agreement is not None and one.agreement > 0.97 for one in whole.values())
    assert report.latency_ms is not None
    assert report.latency_ms.float_host == whole["fp32"].host_p50_ms
    assert report.latency_ms.whole_host == whole["int8-dynamic"].host_p50_ms
    assert report.float_size_bytes == whole["fp32"].size_bytes
    assert report.parity[0].step == "pruned" and report.parity[0].sqnr_db < report.parity[1].sqnr_db
    assert any("pruning does not pay here" in note for note in report.notes) == (
        report.latency_ms.host >= report.latency_ms.whole_host
    )
    page = render(report)
    assert "Whole model in int8-dynamic, measured here" in page
    assert "Tokens: class: 50 tokens to" in page


def test_auto_declines_what_gains_no_time(tmp_path: Path) -> None:
    bundle = edgekit.export(
        "fashion-vit",
        device="raspberry-pi-5",
        format="onnx",
        quantize="none",
        prune_tokens="auto",
        max_drop=6.0,
        output=str(tmp_path / "vit.edgekit"),
    )
    report = EvaluationReport.from_json(bundle.report)
    assert [note for note in report.notes if note.startswith("auto pruned no heads or tokens")]
    assert not any(line.name == "PruneTokens" for line in bundle.manifest.history)
    assert not any(one.whole for one in report.candidates)


def test_the_clock_and_the_prediction_decide_together(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    wide = [nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)) for width in (64, 2048)]
    small, large = (Capture()(Model("net", net.eval(), {"x": torch.randn(1, net[0].in_features)})) for net in wide)
    device = load_device("raspberry-pi-5")
    exporter = EXPORTERS.load("onnx")()
    assert decline(large, small, exporter, device, 1, tmp_path / "gains") == ""
    said = decline(small, large, exporter, device, 1, tmp_path / "loses")
    assert "no time is gained" in said and "Raspberry Pi 5" in said


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


def small_text(task_output: str) -> Model:
    """Answers with as many rows as there are tokens, or with one."""

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(20, 16)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            tokens: torch.Tensor = self.table(ids) * mask.unsqueeze(2)
            return tokens if task_output == "tokens" else tokens.sum(1)

    torch.manual_seed(0)
    loose = {0: "batch", 1: "sequence"}
    samples = tuple(
        {"ids": torch.randint(1, 20, (1, length)), "mask": torch.ones(1, length, dtype=torch.long)} for length in (6, 9)
    )
    return Model(
        "text",
        Text().eval(),
        samples[0],
        ("out",),
        held_out=samples,
        dynamic={"ids": dict(loose), "mask": dict(loose)},
    )


def test_the_quality_is_counted_from_the_whole_texts() -> None:
    model = small_text("sum")
    fixed, before = fix_length(model, 4, silent)
    assert before is not None and before["out"].shape == (2, 16)
    assert np.allclose(before["out"][1], model.forward(model.held_out[1])["out"][0], atol=1e-6)
    assert fixed.held_out[1]["ids"].shape == (1, 4)


def test_lengths_stay_where_none_is_open_or_asked_for(vit: Model) -> None:
    assert fix_length(vit, None, silent) == (vit, None)
    with pytest.raises(UsageError, match="open lengths none"):
        fix_length(vit, 8, silent)


def test_answers_as_long_as_the_input_are_not_cut() -> None:
    with pytest.raises(UsageError, match="have the length of its inputs"):
        fix_length(small_text("tokens"), 4, silent)

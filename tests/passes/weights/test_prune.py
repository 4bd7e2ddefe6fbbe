"""The pass: smaller, close to the whole, and refused where it cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.distillation import Recovery
from edgekit.errors import SourceError, UnknownNameError, UsageError
from edgekit.model import Model
from edgekit.parity import judge, run_model
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.passes.weights.bottleneck import Masks
from edgekit.passes.weights.prune import METHODS, PruneWeights
from edgekit.passes.weights.stacks import blocks_of, plain
from edgekit.zoo.fashion import fashion_cnn, fashion_vit

FEW = PruneWeights(recovery=Recovery(steps=12, batch=16), masks=Masks(steps=12, batch=16))


def _cosine(whole: Model, pruned: Model) -> float:
    return judge(whole, run_model(whole, whole.held_out), run_model(pruned, whole.held_out)).cosine


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", ["small_vit", "small_bert"])
def test_every_method_meets_its_share_and_shrinks_the_weights(
    method: str, which: str, request: pytest.FixtureRequest
) -> None:
    model: Model = request.getfixturevalue(which)
    pruned = replace(FEW, method=method, share=0.67)(model)
    step = replace(FEW, method=method)
    before, after = (step.costs(plain(one)).whole for one in (model, pruned))
    assert 0.5 * before < after <= 0.67 * before + 1
    assert pruned.size_bytes < model.size_bytes
    assert pruned.history[-1].name == "PruneWeights" and "12 steps of recovery" in pruned.history[-1].detail
    answers = pruned.forward(model.held_out[0])
    assert answers.keys() == model.forward(model.held_out[0]).keys()


def test_refitting_and_recovery_each_bring_the_answers_closer(small_bert: Model) -> None:
    """On what they see: so few random tokens teach nothing of others."""
    seen = replace(small_bert, held_out=small_bert.calibration)
    bare = replace(FEW, method="magnitude", recovery=None, refits=False)(seen)
    fitted = replace(FEW, method="magnitude", recovery=None)(seen)
    recovered = replace(FEW, method="magnitude", recovery=Recovery(steps=100, batch=16, learning_rate=2e-3))(seen)
    assert _cosine(seen, bare) < 0.8 < _cosine(seen, fitted) < _cosine(seen, recovered)


def test_half_of_a_trained_vit_keeps_its_classes_without_a_label() -> None:
    """Random numbers as pictures would not do: these weights know clothes."""
    model = fashion_vit()
    pruned = PruneWeights("vib", 0.5, recovery=None, masks=Masks(steps=40))(model)
    quality = judge(model, run_model(model, model.held_out), run_model(pruned, model.held_out))
    assert quality.drop <= 4  # 128 pictures: one is 0.8 points
    assert sum(len(block.state_dict()) for block in blocks_of(pruned)) > 0


def test_tokens_are_pruned_after_weights_and_not_before(small_vit: Model) -> None:
    narrow = replace(FEW, method="magnitude", recovery=None)(small_vit)
    both = PruneTokens("merge", 0.8)(narrow)
    assert [line.name for line in both.history] == ["PruneWeights", "PruneTokens"]
    assert both.forward(small_vit.held_out[0])["logits"].shape == (1, 10)
    with pytest.raises(UsageError, match="pruned already"):
        replace(FEW, method="magnitude", recovery=None)(PruneTokens("merge", 0.8)(small_vit))


def test_open_lengths_stay_open(small_bert: Model) -> None:
    pruned = replace(FEW, recovery=None)(small_bert)
    longer = {name: torch.cat([value, value], 1) for name, value in small_bert.held_out[0].items()}
    assert pruned.forward(longer)["embedding"].shape == (1, 32)
    assert pruned.dynamic == small_bert.dynamic


def test_an_interrupted_pass_goes_on_where_it_was(small_vit: Model, tmp_path: Path) -> None:
    unbroken = FEW(small_vit)

    def interrupt(step: str, done: int, total: int) -> None:
        if step == "recover" and done >= 500:
            raise KeyboardInterrupt

    kept = replace(FEW, checkpoint=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        kept(small_vit, interrupt)
    seen: list[tuple[str, int]] = []
    resumed = kept(small_vit, lambda step, done, total: seen.append((step, done)))
    assert [done for step, done in seen if step == "learn masks"] == [1000]
    assert min(done for step, done in seen if step == "recover") >= 500
    one = small_vit.held_out[0]
    assert torch.equal(resumed.forward(one)["logits"], unbroken.forward(one)["logits"])


def test_a_module_without_attention_is_refused() -> None:
    for method in METHODS:
        with pytest.raises(SourceError, match="no encoder"):
            replace(FEW, method=method)(fashion_cnn())


def test_gated_layers_without_a_known_encoder_are_narrowed_by_magnitude_alone() -> None:
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    torch.manual_seed(0)
    module = nn.Sequential(LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=64))).eval()
    samples = tuple({"input": torch.randn(1, 3, 16)} for _ in range(24))
    model = Model("glu", module, samples[0], ("output",), calibration=samples[:16], held_out=samples[16:])
    pruned = replace(FEW, method="magnitude", recovery=Recovery(steps=30, batch=8))(model)
    assert pruned.module[0].down_proj.weight.shape == (16, 32)  # type: ignore[index, union-attr]
    assert "gated feed-forward layers to an expansion of 2.00" in pruned.history[-1].detail
    bare = replace(FEW, method="magnitude", recovery=None)(model)
    assert _cosine(model, bare) < _cosine(model, pruned)
    with pytest.raises(SourceError, match="no encoder"):
        FEW(model)


def test_options_that_cannot_be_are_told(small_vit: Model) -> None:
    with pytest.raises(UnknownNameError, match="weight method"):
        replace(FEW, method="vip")(small_vit)
    for share in (0.0, 1.2):
        with pytest.raises(UsageError, match="allowed above 0 to 1"):
            replace(FEW, share=share)(small_vit)
    for method in METHODS:
        with pytest.raises(UsageError, match=r"cannot be met.* at least"):
            replace(FEW, method=method, share=0.01)(small_vit)

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import SourceError, UnknownNameError, UsageError
from edgekit.model import Model
from edgekit.parity import run_model
from edgekit.passes.capture import Capture
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.passes.tokens.stack import ReducingStack
from edgekit.registry import TOKEN_METHODS
from edgekit.zoo.fashion import fashion_cnn, fashion_vit


@pytest.fixture(scope="module")
def vit() -> Model:
    model = fashion_vit()
    return replace(model, calibration=model.calibration[:16], held_out=model.held_out[:64], labels=model.labels[:64])


@pytest.mark.parametrize("method", TOKEN_METHODS)
def test_the_classes_mostly_stay_with_a_fifth_less_work(vit: Model, method: str) -> None:
    pruned = PruneTokens(method, flops=0.8)(vit)
    want, got = (run_model(model, vit.held_out)["logits"].argmax(1) for model in (vit, pruned))

    assert (want == got).mean() >= 0.85
    assert 0.75 < _flops(pruned) / _flops(PruneTokens(flops=1.0)(vit)) < 0.9
    assert "tokens to" in pruned.history[-1].detail


def _flops(model: Model) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.module(*model.args)
    return float(counter.get_total_flops())


def test_all_tokens_kept_is_the_same_model(vit: Model) -> None:
    same = PruneTokens(flops=1.0)(vit)
    want, got = (run_model(model, vit.held_out[:8])["logits"] for model in (vit, same))
    assert np.abs(want - got).max() < 1e-4


def test_a_schedule_of_ones_own_wins(vit: Model) -> None:
    pruned = PruneTokens(keep=(50, 40, 40, 30, 30, 20))(vit)
    stack = next(child for child in pruned.module.modules() if isinstance(child, ReducingStack))
    assert stack.keep == (50, 40, 40, 30, 30, 20)


@pytest.mark.parametrize("keep", [(50, 40), (50, 40, 30, 20, 10, 1)])
def test_a_schedule_that_keeps_no_content_is_refused(vit: Model, keep: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="allowed"):
        PruneTokens(keep=keep)(vit)


@pytest.mark.parametrize("method", TOKEN_METHODS)
def test_the_graph_is_captured_with_an_open_batch(vit: Model, method: str) -> None:
    pruned = PruneTokens(method, flops=0.8)(vit)
    captured = Capture()(pruned)
    want, got = (run_model(model, vit.held_out[:20])["logits"] for model in (pruned, captured))
    assert np.abs(want - got).max() < 1e-3


def test_the_given_model_is_left_as_it_was(vit: Model) -> None:
    before = run_model(vit, vit.held_out[:4])["logits"]
    PruneTokens(flops=0.7)(vit)
    assert np.array_equal(run_model(vit, vit.held_out[:4])["logits"], before)


def test_models_without_attention_and_unknown_methods_are_refused(vit: Model) -> None:
    with pytest.raises(SourceError, match="no encoder"):
        PruneTokens()(fashion_cnn())
    with pytest.raises(UnknownNameError, match="token method"):
        PruneTokens("best")(vit)
    with pytest.raises(UsageError, match="allowed above 0"):
        PruneTokens(flops=0.0)(vit)


class MeanOfTokens(nn.Module):
    """Needs every token at the end: the mean where the mask is 1."""

    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            attn_implementation="eager",
        )
        self.bert = transformers.BertModel(config, add_pooling_layer=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        tokens: Tensor = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(2).to(tokens.dtype)
        return (tokens * weight).sum(1) / weight.sum(1)


def text_model(dynamic: dict[str, dict[int, str]]) -> Model:
    torch.manual_seed(0)
    samples = []
    for length in (12, 12, 7, 5):
        mask = (torch.arange(12) < length).long()[None]
        samples.append({"ids": torch.randint(1, 50, (1, 12)) * mask, "mask": mask})
    return Model(
        name="text",
        module=MeanOfTokens().eval(),
        example_inputs=dict(samples[0]),
        output_names=("embedding",),
        calibration=tuple(samples),
        dynamic=dynamic,
    )


@pytest.mark.parametrize("method", ["merge", "accumulated"])
def test_padded_samples_answer_as_their_content_alone(method: str) -> None:
    """7 of 12 are content and 8 stay: no content is lost, so the answer hardly changes."""
    model = text_model({})
    keep = (10, 9, 8)
    pruned = PruneTokens(method, keep=keep)(model)
    short = model.calibration[2]
    want, got = (one.forward(short)["embedding"] for one in (model, pruned))
    assert torch.nn.functional.cosine_similarity(want, got).item() > 0.999
    full = model.calibration[0]
    assert not torch.allclose(pruned.forward(full)["embedding"], model.forward(full)["embedding"], atol=1e-4)


def test_inputs_of_any_length_are_refused() -> None:
    loose = {0: "batch", 1: "sequence"}
    with pytest.raises(UsageError, match="any length"):
        PruneTokens()(text_model({"ids": loose, "mask": dict(loose)}))

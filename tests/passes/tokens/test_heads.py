"""Heads and blocks that go: the right ones, for good, with what they added made up for."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgekit.errors import SourceError, UsageError
from edgekit.model import Model
from edgekit.parity import run_model
from edgekit.passes.capture import Capture
from edgekit.passes.tokens.heads import Moments, activity, cascade, refit, strongest
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.passes.tokens.prune_heads import PruneHeads, watch_heads
from edgekit.passes.tokens.stack import ReducingStack
from edgekit.passes.transformer.block import EncoderBlock, SelfAttention
from edgekit.passes.transformer.families import opened
from edgekit.zoo.fashion import fashion_cnn, fashion_vit

from .test_prune import text_model


@pytest.fixture(scope="module")
def vit() -> Model:
    model = fashion_vit()
    return replace(model, calibration=model.calibration[:16], held_out=model.held_out[:64], labels=model.labels[:64])


def moments(rows: torch.Tensor, heads: int) -> Moments:
    found = Moments.none(rows.shape[1], heads)
    found.add(rows)
    return found


def test_a_head_that_always_says_the_same_is_inactive() -> None:
    torch.manual_seed(0)
    rows = torch.randn(100, 6)
    rows[:, 2:4] = 9.0
    found = activity(moments(rows, 3), torch.eye(6))
    assert found[1] < 1e-6 and found.sum() == pytest.approx(1.0)


def test_the_strongest_heads_stay_whatever_their_block_but_one_in_each() -> None:
    importance = torch.tensor([[0.1, 0.05, 0.02], [0.9, 0.8, 0.7]], dtype=torch.float64)
    assert strongest(importance, 0.5) == [[0], [0, 1]]
    assert strongest(importance, 1.0) == [[0, 1, 2], [0, 1, 2]]


def test_a_cascade_never_takes_a_head_back() -> None:
    importance = torch.rand(6, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kept = cascade(importance, 0.6)
    assert all(set(later) <= set(before) for before, later in itertools.pairwise(kept))
    assert sum(map(len, kept)) == pytest.approx(0.6 * 48, abs=3)


def test_the_cascade_adds_importance_up() -> None:
    """Head 1 is second in each block, and first over all."""
    importance = torch.tensor([[3.0, 2.0, 0.0], [0.0, 2.0, 3.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    assert cascade(importance, 0.34)[-1] == [1]


def test_what_a_pruned_head_says_as_others_do_is_made_up_for_exactly() -> None:
    """Head 1 is head 0 doubled and moved: a projection of head 0 and a bias lose nothing."""
    torch.manual_seed(1)
    own = torch.randn(200, 2)
    rows = torch.cat([own, 2 * own + 3], 1)
    output = torch.randn(5, 4)
    weight, bias = refit(output, moments(rows, 2), [0])
    assert (own @ weight.T + bias - rows @ output.T).abs().max() < 2e-3 * (rows @ output.T).abs().max()


@pytest.mark.parametrize("by", ["activity", "cascade"])
def test_rows_of_all_four_projections_are_gone(vit: Model, by: str) -> None:
    pruned = PruneHeads(0.75, by)(vit)  # type: ignore[arg-type]
    layers = [child for child in pruned.module.modules() if isinstance(child, SelfAttention)]
    assert sum(layer.heads for layer in layers) == 18
    for layer in layers:
        rows = {layer.query.out_features, layer.key.out_features, layer.value.out_features, layer.output.in_features}
        assert rows == {16 * layer.heads}
    assert pruned.size_bytes < vit.size_bytes and "24 heads to 18" in pruned.history[-1].detail


def test_fitting_the_projection_loses_less() -> None:
    model = fashion_vit()
    want = run_model(model, model.held_out)["logits"]
    errors = [
        np.square(run_model(PruneHeads(0.75, refits=refits)(model), model.held_out)["logits"] - want).mean()
        for refits in (True, False)
    ]
    assert errors[0] < 0.8 * errors[1]


def test_all_heads_kept_is_the_same_model(vit: Model) -> None:
    want, got = (run_model(model, vit.held_out[:8])["logits"] for model in (vit, PruneHeads(1.0)(vit)))
    assert np.abs(want - got).max() < 1e-4


def test_padding_is_not_watched() -> None:
    model = text_model({})
    module, _, blocks = opened(model.module, model.name)
    own = [block for block in blocks if isinstance(block, EncoderBlock)]
    seen = watch_heads(model.evolve_quietly(module=module), own, model.calibration)
    assert [one.count for one in seen] == [12 + 12 + 7 + 5] * 3


def test_heads_and_tokens_are_pruned_in_either_order(vit: Model) -> None:
    first = PruneTokens("class", 0.8)(PruneHeads(0.75)(vit))
    second = PruneHeads(0.75)(PruneTokens("class", 0.8)(vit))
    want = run_model(vit, vit.held_out)["logits"].argmax(1)
    for pruned in (first, second):
        assert (run_model(pruned, vit.held_out)["logits"].argmax(1) == want).mean() > 0.85
        attentions = [child for child in pruned.module.modules() if isinstance(child, SelfAttention)]
        assert sum(layer.heads for layer in attentions) == 18
        (stack,) = (child for child in pruned.module.modules() if isinstance(child, ReducingStack))
        assert stack.keep[-1] < 50


def test_tokens_are_pruned_once(vit: Model) -> None:
    with pytest.raises(UsageError, match="pruned already"):
        PruneTokens()(PruneTokens()(vit))


def test_the_graph_is_captured_with_an_open_batch(vit: Model) -> None:
    pruned = PruneHeads(0.7)(vit)
    captured = Capture()(pruned)
    want, got = (run_model(model, vit.held_out[:20])["logits"] for model in (pruned, captured))
    assert np.abs(want - got).max() < 1e-4


def test_the_given_model_is_left_as_it_was(vit: Model) -> None:
    before = run_model(vit, vit.held_out[:4])["logits"]
    PruneHeads(0.5)(vit)
    assert np.array_equal(run_model(vit, vit.held_out[:4])["logits"], before)


def test_what_cannot_be_is_refused(vit: Model) -> None:
    with pytest.raises(UsageError, match="allowed above 0 to 1"):
        PruneHeads(0.0)(vit)
    with pytest.raises(UsageError, match="allowed activity or cascade"):
        PruneHeads(0.5, "size")(vit)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="no encoder"):
        PruneHeads()(fashion_cnn())

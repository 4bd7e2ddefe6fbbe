"""Least squares on what is left."""

from __future__ import annotations

import pytest
import torch

from edgekit.batches import stacked
from edgekit.model import Model
from edgekit.passes.weights import refit as refitting
from edgekit.passes.weights.cut import Kept, cut_blocks, everything
from edgekit.passes.weights.refit import entering, refit
from edgekit.passes.weights.stacks import blocks_of, plain, with_blocks


def _distance(model: Model, other: Model) -> float:
    name = model.output_names[0]
    rows = [(model.forward(s)[name], other.forward(s)[name]) for s in model.held_out]
    return float(sum((a - b).square().sum() for a, b in rows) / sum(a.square().sum() for a, _ in rows))


@pytest.mark.parametrize("which", ["small_vit", "small_bert"])
def test_what_is_left_comes_closer_to_the_whole(which: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(which)
    whole = plain(model)
    kept = [Kept((0, 1, 3), tuple(range(0, 64, 2)))] * 3
    cut = with_blocks(whole, cut_blocks(blocks_of(whole), kept))
    fitted = refit(whole, cut, [0, 1, 2], stacked(model.calibration, model))
    assert _distance(whole, fitted) < 0.8 * _distance(whole, cut)


def test_units_that_say_the_same_are_replaced_without_loss(small_vit: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plain(small_vit)
    block = blocks_of(whole)[1]
    with torch.no_grad():
        block.feed_forward.expand.weight[32:] = block.feed_forward.expand.weight[:32]
        block.feed_forward.expand.bias[32:] = block.feed_forward.expand.bias[:32]
    kept = list(everything(blocks_of(whole)))
    kept[1] = Kept(kept[1].heads, tuple(range(32)))
    cut = with_blocks(whole, cut_blocks(blocks_of(whole), kept))
    monkeypatch.setattr(refitting, "RIDGE", 1e-6)
    fitted = refit(whole, cut, [0, 1, 2], stacked(small_vit.calibration, small_vit))
    assert _distance(whole, cut) > 1e-3
    assert _distance(whole, fitted) < 1e-6


def test_padding_is_left_out(small_bert: Model) -> None:
    batch = stacked(small_bert.calibration[:6], small_bert)
    (state,) = entering(plain(small_bert), batch)
    assert state.content(state.tokens).shape[0] == int(batch[0]["attention_mask"].sum())
    assert state.content(state.tokens).shape[0] < state.tokens.shape[0] * state.tokens.shape[1]

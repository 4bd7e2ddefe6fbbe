"""Heads among fewer tokens give what they gave among all, as far as a share and a constant can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import UsageError
from edgekit.model import Model
from edgekit.parity import run_model
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.passes.tokens.prune_heads import PruneHeads
from edgekit.passes.tokens.restore import RestoreAttention, fold, joint_heads, spoken
from edgekit.passes.tokens.stack import ReducingStack
from edgekit.passes.tokens.state import Tokens
from edgekit.passes.transformer.block import EncoderBlock, FeedForward, SelfAttention
from edgekit.zoo.fashion import fashion_vit

from .test_prune import text_model


@pytest.fixture(scope="module")
def vit() -> Model:
    model = fashion_vit()
    return replace(model, calibration=model.calibration[:32])


def block(bias: bool = True) -> EncoderBlock:
    torch.manual_seed(0)
    query, key, value, output = (nn.Linear(8, 8, bias=bias) for _ in range(4))
    feed_forward = FeedForward(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    attention = SelfAttention(query, key, value, output, 2)
    return EncoderBlock(attention, feed_forward, nn.LayerNorm(8), nn.LayerNorm(8), is_prenorm=True).eval()


@pytest.mark.parametrize("bias", [True, False])
def test_a_share_and_a_constant_are_found_and_folded(bias: bool) -> None:
    """Head 0 lost a tenth of its mass, head 1 nothing but a constant."""
    one = block(bias)
    tokens = torch.randn(3, 5, 8)
    with torch.no_grad():
        have = joint_heads(one, tokens, None).flatten(0, 1)
        moved = torch.tensor([0.1] * 4 + [-0.3] * 4)
        want = have * torch.tensor([0.9] * 4 + [1.0] * 4) + moved
        answer = one.attention.output(want)
        shares = fold(one, have, want, slack=0.3)
        got = one.attention(one.norm1(tokens)).mixed.flatten(0, 1)
    assert shares == pytest.approx([0.9, 1.0], abs=1e-4)
    assert (got - answer).abs().max() < 1e-5


def test_shares_stay_within_the_slack() -> None:
    one = block()
    with torch.no_grad():
        have = torch.randn(50, 8)
        assert fold(one, have, 5 * have, slack=0.3) == pytest.approx([1.3, 1.3])


def test_a_token_is_compared_with_those_that_it_speaks_for() -> None:
    heads = torch.tensor([[[1.0], [3.0], [5.0], [7.0]]])
    state = Tokens(torch.zeros(1, 2, 1), owners=torch.tensor([[0, 1, 1, 1]]))
    assert spoken(heads, state).flatten().tolist() == [1.0, 5.0]


def test_answers_come_nearer_to_the_whole_model(vit: Model) -> None:
    pruned = PruneTokens("accumulated", 0.6)(vit)
    restored = RestoreAttention()(pruned)
    want, before, after = (run_model(model, vit.held_out)["logits"] for model in (vit, pruned, restored))
    assert np.square(after - want).mean() < 0.97 * np.square(before - want).mean()
    assert restored.size_bytes == pruned.size_bytes and "shares" in restored.history[-1].detail


def test_nothing_is_added_to_the_graph(vit: Model) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    pruned = PruneTokens("class", 0.7)(vit)
    counts = []
    for model in (pruned, RestoreAttention()(pruned)):
        with FlopCounterMode(display=False) as counter:
            model.forward(model.example_inputs)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_where_no_token_is_gone_nothing_changes(vit: Model) -> None:
    whole = PruneTokens("class", flops=1.0)(vit)
    same = RestoreAttention()(whole)
    want, got = (run_model(model, vit.held_out[:8])["logits"] for model in (whole, same))
    assert np.array_equal(want, got) and "no block" in same.history[-1].detail


def test_the_given_model_is_left_as_it_was(vit: Model) -> None:
    pruned = PruneHeads(0.8)(PruneTokens("class", 0.7)(vit))
    before = run_model(pruned, vit.held_out[:4])["logits"]
    RestoreAttention()(pruned)
    assert np.array_equal(run_model(pruned, vit.held_out[:4])["logits"], before)


def test_padded_texts_are_restored_by_their_content() -> None:
    restored = RestoreAttention()(PruneTokens("accumulated", keep=(10, 9, 8))(text_model({})))
    assert any(isinstance(child, ReducingStack) for child in restored.module.modules())
    assert torch.isfinite(restored.forward(restored.calibration[3])["embedding"]).all()


def test_where_no_mass_was_lost_it_is_refused(vit: Model) -> None:
    with pytest.raises(UsageError, match="not pruned"):
        RestoreAttention()(vit)
    with pytest.raises(UsageError, match="merging loses no attention"):
        RestoreAttention()(PruneTokens("merge", 0.7)(vit))

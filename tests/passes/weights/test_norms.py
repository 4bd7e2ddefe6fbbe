"""LayerNorm that becomes BatchNorm and goes into the next layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgekit.distillation import Recovery
from edgekit.errors import UsageError
from edgekit.model import Model
from edgekit.parity import run_model
from edgekit.passes.weights.norms import ProgressiveNorm, ReplaceNorms, fold_norms
from edgekit.passes.weights.stacks import blocks_of, plain, with_blocks
from edgekit.zoo.fashion import fashion_vit


def _unsettled(norm: nn.LayerNorm, seed: int) -> ProgressiveNorm:
    """With statistics, weights and eta that are far from where they start."""
    torch.manual_seed(seed)
    made = ProgressiveNorm(norm).eval()
    width = norm.normalized_shape[0]
    made.batch.running_mean = torch.randn(width)
    made.batch.running_var = 0.5 + torch.rand(width)
    with torch.no_grad():
        made.eta.fill_(0.3)
    return made


def test_the_fold_answers_as_the_norms_did() -> None:
    model = fashion_vit()
    blocks = copy.deepcopy(blocks_of(plain(model)))
    for index, block in enumerate(blocks):
        block.norm1, block.norm2 = _unsettled(block.norm1, index), _unsettled(block.norm2, 100 + index)  # type: ignore[arg-type]
        for norm in (block.norm1, block.norm2):
            norm.share.fill_(0.0)  # type: ignore[operator, union-attr]
    normed = with_blocks(plain(model), blocks)
    folded = with_blocks(plain(model), [fold_norms(block) for block in blocks])
    want, got = (run_model(one, model.held_out[:32])["logits"] for one in (normed, folded))
    assert abs(want - got).max() < 1e-4 * abs(want).max()  # another order of additions, through six blocks
    assert not any(isinstance(child, nn.LayerNorm | nn.BatchNorm1d) for b in blocks_of(folded) for child in b.modules())


def test_it_begins_as_the_layernorm_and_ends_without_it() -> None:
    norm = nn.LayerNorm(8)
    nn.init.normal_(norm.weight)
    tokens = torch.randn(4, 5, 8) * 3 + 1
    made = ProgressiveNorm(norm)
    assert torch.allclose(made(tokens), norm(tokens))
    made.share.fill_(0.0)
    made.eval()
    scale, shift = made.affine()
    assert torch.allclose(made(tokens), scale * tokens + shift, atol=1e-5)


def test_half_way_it_is_the_mean_of_both() -> None:
    norm = nn.LayerNorm(8)
    tokens = torch.randn(4, 5, 8)
    made = _unsettled(norm, 0)
    both = []
    for share in (1.0, 0.0, 0.5):
        made.share.fill_(share)
        both.append(made(tokens))
    assert torch.allclose(both[2], (both[0] + both[1]) / 2, atol=1e-6)


def test_training_folds_all_norms_and_keeps_the_classes() -> None:
    model = fashion_vit()
    made = ReplaceNorms(Recovery(steps=30, batch=16, learning_rate=1e-3))(model)
    want, got = (run_model(one, model.held_out)["logits"].argmax(1) for one in (model, made))
    assert (want == got).mean() > 0.8
    assert made.history[-1].detail.startswith("12 LayerNorms folded")


def test_norms_behind_the_residual_are_refused(small_bert: Model) -> None:
    with pytest.raises(UsageError, match="behind their residuals"):
        ReplaceNorms(Recovery(steps=1))(small_bert)

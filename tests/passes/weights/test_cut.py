"""Cutting blocks: the shapes shrink, and what is cut is what zero weights would have been."""

from __future__ import annotations

import torch

from edgekit.model import Model
from edgekit.passes.weights.cut import Kept, cut_blocks, cut_linear, everything, rows_of
from edgekit.passes.weights.gates import fold_gates, gate_blocks
from edgekit.passes.weights.stacks import blocks_of, plain, with_blocks

TOLERANCE = 2e-5  # sums of 64 products of numbers around 1 in float32, through three blocks


def _answers(model: Model) -> torch.Tensor:
    return torch.cat([model.forward(sample)[model.output_names[0]] for sample in model.calibration[:8]])


def test_what_keeps_everything_answers_alike(small_vit: Model, small_bert: Model) -> None:
    for model in (small_vit, small_bert):
        whole = plain(model)
        same = with_blocks(whole, cut_blocks(blocks_of(whole), everything(blocks_of(whole))))
        assert torch.allclose(_answers(same), _answers(model), atol=TOLERANCE)


def test_a_cut_answers_as_the_whole_with_those_parts_silenced(small_vit: Model) -> None:
    whole = plain(small_vit)
    blocks, gates = gate_blocks(blocks_of(whole))
    kept = [Kept((0, 2), tuple(range(0, 64, 2))), Kept((3,), tuple(range(8))), Kept((1, 2, 3), tuple(range(40)))]
    for gate, part in zip(gates, kept, strict=True):
        for own, stays in ((gate.heads, part.heads), (gate.units, part.units)):
            with torch.no_grad():
                own.mu.zero_()
                own.mu[list(stays)] = 1.0
    silenced = with_blocks(whole, blocks)
    cut = with_blocks(whole, cut_blocks(blocks_of(whole), kept))
    assert torch.allclose(_answers(cut), _answers(silenced), atol=TOLERANCE)
    assert not torch.allclose(_answers(cut), _answers(whole), atol=1e-2)
    assert [b.attention.query.weight.shape for b in blocks_of(cut)] == [(16, 32), (8, 32), (24, 32)]
    assert [b.feed_forward.contract.weight.shape for b in blocks_of(cut)] == [(32, 32), (32, 8), (32, 40)]
    assert [b.attention.head_width for b in blocks_of(cut)] == [8, 8, 8]


def test_a_block_of_which_nothing_stays_is_gone(small_vit: Model) -> None:
    whole = plain(small_vit)
    blocks = blocks_of(whole)
    kept = list(everything(blocks))
    kept[1] = Kept((), ())
    cut = with_blocks(whole, cut_blocks(blocks, kept))
    by_hand = with_blocks(whole, [blocks[0], blocks[2]])
    assert torch.equal(_answers(cut), _answers(by_hand))


def test_the_whole_stays_as_it_was(small_vit: Model) -> None:
    before = _answers(small_vit)
    cut = with_blocks(plain(small_vit), cut_blocks(blocks_of(plain(small_vit)), [Kept((0,), (0, 1))] * 3))
    for block in blocks_of(cut):
        block.feed_forward.contract.weight.data.zero_()
    assert torch.equal(_answers(small_vit), before)


def test_folded_gates_answer_as_the_gated_blocks(small_vit: Model, small_bert: Model) -> None:
    for model in (small_vit, small_bert):
        whole = plain(model)
        blocks, gates = gate_blocks(blocks_of(whole))
        generator = torch.Generator().manual_seed(1)
        for gate in gates:
            for own in gate.each():
                own.mu.data = 0.5 + torch.rand(own.mu.shape, generator=generator)
        gated = with_blocks(whole, blocks)
        folded = with_blocks(whole, [fold_gates(b, g) for b, g in zip(blocks_of(whole), gates, strict=True)])
        assert torch.allclose(_answers(folded), _answers(gated), atol=TOLERANCE)


def test_rows_of_heads_and_layers_without_bias() -> None:
    assert rows_of((1, 3), 2).tolist() == [2, 3, 6, 7]
    layer = torch.nn.Linear(4, 6, bias=False)
    part = cut_linear(layer, rows=torch.tensor([5, 0]), columns=torch.tensor([1, 2, 3]))
    assert part.bias is None
    assert torch.equal(part.weight, layer.weight[[5, 0]][:, 1:])

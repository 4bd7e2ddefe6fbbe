from __future__ import annotations

import torch

from edgekit.zoo.docstring_lm import ByteModel
from samples.training.train_docstring_lm import Unrolled, bits_per_byte, streams, train


def test_texts_are_cut_into_streams_side_by_side():
    cut = streams(["ab", "cde"], 2)
    assert cut.dtype == torch.uint8
    assert cut.tolist() == [[0, 97, 98, 0], [99, 100, 101, 0]]


def test_training_learns_and_changes_the_step_itself():
    torch.manual_seed(0)
    model = ByteModel(width=16)
    net, text = Unrolled(model, dropout=0.0), streams(["abcabcabcabc"] * 40, 4)
    before, weight = bits_per_byte(net, text), model.from_state.weight.clone()
    train(net, text, epochs=6, window=20, learning_rate=0.02)
    assert bits_per_byte(net, text) < before / 2
    assert not torch.equal(model.from_state.weight, weight)
    with torch.no_grad():
        logits, _ = model(torch.tensor([ord("a")]), torch.zeros(1, 16))
        unrolled, _ = net(torch.tensor([[ord("a")]]))
    torch.testing.assert_close(logits, unrolled[:, 0])

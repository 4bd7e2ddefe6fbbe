"""Layers that change little go first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.errors import UsageError
from edgekit.model import Model
from edgekit.passes.weights.budget import Costs
from edgekit.passes.weights.similarity import similarities, without_similar
from edgekit.passes.weights.stacks import blocks_of, plain

COSTS = Costs((100.0,) * 4, (10.0,) * 4, (2,) * 4, (16,) * 4)


def test_a_layer_that_does_nothing_is_found(small_vit: Model) -> None:
    whole = plain(small_vit)
    silent = blocks_of(whole)[1]
    with torch.no_grad():
        for layer in (silent.attention.output, silent.feed_forward.contract):
            layer.weight.zero_()
            layer.bias.zero_()
    found = similarities(whole, small_vit.calibration[:4])
    assert found[1] == pytest.approx(1.0, abs=1e-6)
    assert found.argmax() == 1 and found[0] < 0.999 and found[2] < 0.999


def test_padding_is_not_counted(small_bert: Model) -> None:
    whole = plain(small_bert)
    one = small_bert.calibration[0]
    found = similarities(whole, [one])
    length = int(one["attention_mask"].sum())
    short = {name: value[:, :length] for name, value in one.items()}
    assert np.allclose(found, similarities(whole, [short]), atol=1e-5)


def test_the_most_similar_go_until_the_budget_is_met() -> None:
    kept = without_similar(np.array([0.2, 0.9, 0.5, 0.8]), COSTS, 0.5)
    assert [part.whole_block_goes for part in kept] == [False, True, False, True]
    assert COSTS.share(kept) == pytest.approx(0.5)
    assert COSTS.share(without_similar(np.array([0.2, 0.9, 0.5, 0.8]), COSTS, 0.6)) == pytest.approx(0.5)


def test_less_than_one_layer_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"0\.250 at least"):
        without_similar(np.zeros(4), COSTS, 0.2)

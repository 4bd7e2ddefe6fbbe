"""Masks learned on a frozen encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.model import Model
from edgekit.passes.weights.bottleneck import Masks, learn_masks
from edgekit.passes.weights.budget import Costs
from edgekit.passes.weights.gates import InformationGate
from edgekit.passes.weights.stacks import blocks_of, plain, with_blocks

STEPS = Masks(steps=60, batch=16)


def _with_dead_parts(model: Model) -> Model:
    """Half of the units of block 0 and head 1 of block 2 reach nothing."""
    whole = plain(model)
    blocks = blocks_of(whole)
    with torch.no_grad():
        blocks[0].feed_forward.contract.weight[:, 32:] = 0
        blocks[2].attention.output.weight[:, 8:16] = 0
    return with_blocks(whole, blocks)


def test_parts_that_reach_nothing_lose_their_information_first(small_vit: Model) -> None:
    model = _with_dead_parts(small_vit)
    costs = Costs.of(blocks_of(plain(model)), 17, "flops")
    scores = learn_masks(model, model.calibration, costs, 0.5, STEPS).scores
    assert scores.units[0][32:].max() < np.median(scores.units[0][:32])
    assert scores.heads[2].argmin() == 1


def test_only_masks_are_trained(small_vit: Model) -> None:
    before = {name: value.clone() for name, value in small_vit.module.state_dict().items()}
    costs = Costs.of(blocks_of(plain(small_vit)), 17, "flops")
    learn_masks(small_vit, small_vit.calibration, costs, 0.5, Masks(steps=3, batch=8))
    after = small_vit.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(value.requires_grad for value in small_vit.module.parameters())


def test_an_interrupted_training_of_masks_ends_as_an_unbroken_one(small_vit: Model, tmp_path: Path) -> None:
    costs = Costs.of(blocks_of(plain(small_vit)), 17, "flops")
    few = replace(STEPS, steps=12)
    unbroken = learn_masks(small_vit, small_vit.calibration, costs, 0.5, few)

    def interrupt(step: str, done: int, total: int) -> None:
        if done >= 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_masks(small_vit, small_vit.calibration, costs, 0.5, few, checkpoint=tmp_path, progress=interrupt)
    resumed = learn_masks(small_vit, small_vit.calibration, costs, 0.5, few, checkpoint=tmp_path)
    for ours, theirs in zip(resumed.scores.units, unbroken.scores.units, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_gate_is_noisy_in_training_alone_and_counts_its_nats() -> None:
    gate = InformationGate(2, repeat=3)
    values = torch.ones(4, 5, 6)
    gate.train()
    torch.manual_seed(0)
    noisy = gate(values)
    assert noisy.shape == values.shape
    assert torch.equal(noisy[:, :1].expand_as(noisy), noisy)  # one draw for all tokens of a sample
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(noisy[..., 0], noisy[..., 2])
    assert torch.equal(gate.eval()(values), values)
    with torch.no_grad():
        gate.mu.copy_(torch.tensor([3.0, 1e-3]))
        gate.log_sigma.fill_(0.0)
    expected = 0.5 * np.log1p(np.array([9.0, 1e-6]))
    assert np.allclose(gate.information.detach().numpy(), expected, rtol=1e-5, atol=1e-7)

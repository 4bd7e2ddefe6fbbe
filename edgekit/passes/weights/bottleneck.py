"""Variational information bottleneck: masks learned on a frozen encoder tell what of it carries the answer.

Dutta et al., VTrans, arXiv:2406.05276, section 3, in its fastest variant: the weights stay as they are, only masks are
trained. Here the teacher is the model itself, so no labels are needed, and the price of information is steered until
the masks leave what the budget does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.digests import digest_module
from edgekit.distillation import Matching, Recovery, train
from edgekit.model import Model, Sample
from edgekit.passes.transformer.families import PlainStack, find_encoder, with_stack
from edgekit.passes.weights.budget import Costs, Scores
from edgekit.passes.weights.gates import BlockGates, gate_blocks
from edgekit.passes.weights.stacks import block_paths, plain
from edgekit.progress import Progress, silent

# By when in the training the masks should leave no more than the budget.
REACHED_BY = 0.7
FIRST_PRICE, STEERING = 0.02, 0.3


@dataclass(frozen=True)
class Masks:
    """`steps` or `minutes` of training; noise and order follow from `seed`."""

    minutes: float = 3.0
    steps: int | None = None
    batch: int = 32
    learning_rate: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Learned:
    gates: tuple[BlockGates, ...]
    scores: Scores


def learn_masks(
    model: Model,
    samples: Sequence[Sample],
    costs: Costs,
    share: float,
    masks: Masks,
    *,
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> Learned:
    """Masks of the encoder in `model` (not captured) for `share` of its costs. Raises as `distillation.train`."""
    teacher = plain(model)
    module = copy.deepcopy(model.module).eval()
    found = find_encoder(module, model.name)
    blocks, gates = gate_blocks(found.blocks)
    student = model.evolve_quietly(module=with_stack(module, found, PlainStack(blocks)))
    price = _Price(gates, costs, share)
    pairs = list(zip(block_paths(teacher), block_paths(student), strict=True))
    recovery = Recovery(masks.minutes, masks.steps, masks.batch, masks.learning_rate, seed=masks.seed, clip=1e9)
    with Matching(teacher, student, pairs, 1.0) as matching:

        def loss(batch: Sample, generator: torch.Generator) -> Tensor:
            # The gates draw from the global generator: seeded here, so that a resumed step sees the same noise.
            torch.manual_seed(int(generator.initial_seed()))
            return matching(batch, generator) + price.of()

        parameters = [value for gate in gates for part in gate.each() for value in part.parameters()]
        train(
            student,
            [{"params": parameters}],
            loss,
            samples,
            recovery,
            checkpoint=checkpoint,
            progress=progress,
            name="learn masks",
            origin=digest_module(teacher.module),
            each_step=price.steer,
            extra=price,
        )
    return Learned(gates, _scores(gates))


class _Price(nn.Module):
    """What a nat costs, in proportion to what its part costs; dearer while the masks leave too much."""

    def __init__(self, gates: Sequence[BlockGates], costs: Costs, share: float) -> None:
        super().__init__()
        self._gates, self._costs, self._target = gates, costs, share
        self.register_buffer("log_price", torch.tensor(math.log(FIRST_PRICE)))
        self.log_price: Tensor

    def of(self) -> Tensor:
        total = torch.zeros(())
        for index, gate in enumerate(self._gates):
            head, unit = self._costs.head[index], self._costs.unit[index]
            block = head * self._costs.heads[index] + unit * self._costs.units[index]
            total = total + head * gate.heads.information.sum() + unit * gate.units.information.sum()
            total = total + block * gate.layer.information.sum() / 10
        return self.log_price.exp() * total / self._costs.whole

    def left(self) -> float:
        """The share of the costs whose signal is stronger than its noise."""
        total = 0.0
        for index, gate in enumerate(self._gates):
            alive = float(gate.layer.log_ratio > 0)
            total += alive * self._costs.head[index] * int((gate.heads.log_ratio > 0).sum())
            total += alive * self._costs.unit[index] * int((gate.units.log_ratio > 0).sum())
        return total / self._costs.whole

    def steer(self, behind: float) -> None:
        wanted = 1 - (1 - self._target) * min(1.0, behind / REACHED_BY)
        self.log_price += STEERING * (self.left() - wanted)


def _scores(gates: Sequence[BlockGates]) -> Scores:
    return Scores(
        tuple(gate.heads.log_ratio.detach().numpy() for gate in gates),
        tuple(gate.units.log_ratio.detach().numpy() for gate in gates),
        torch.cat([gate.layer.log_ratio.detach() for gate in gates]).numpy(),
    )

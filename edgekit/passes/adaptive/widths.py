"""The passes: an encoder with its units in order, and the same at a share of its width."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from edgekit.model import Model
from edgekit.passes.adaptive.blocks import encoder_blocks, plain_stack
from edgekit.passes.adaptive.lean import LeanBlock
from edgekit.passes.adaptive.narrow import check_width, narrow, share_of
from edgekit.passes.adaptive.order import sort_units
from edgekit.passes.base import Pass
from edgekit.progress import Progress

WATCHED = 64


@dataclass(frozen=True)
class OrderUnits(Pass):
    """Heads and feed-forward units by what they give on calibration data, most first; the answers stay the same."""

    def requires(self, model: Model) -> None:
        plain_stack(copy.deepcopy(model.module), model.name)

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        progress("order heads and units", 0, 0)
        module = copy.deepcopy(model.module).eval()
        blocks = encoder_blocks(plain_stack(module, model.name))
        ordered = model.evolve_quietly(module=module)
        samples = (model.calibration or (model.example_inputs,))[:WATCHED]
        sort_units(blocks, lambda: [ordered.forward(sample) for sample in samples])
        return ordered, f"{len(blocks)} blocks by {len(samples)} samples"


@dataclass(frozen=True)
class SlimEncoder(Pass):
    """`width`: the share of heads and feed-forward units that is left of each block, the first ones; see OrderUnits."""

    width: float

    def requires(self, model: Model) -> None:
        check_width(self.width)
        plain_stack(copy.deepcopy(model.module), model.name)

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        module = copy.deepcopy(model.module).eval()
        stack = plain_stack(module, model.name)
        blocks = encoder_blocks(stack)
        stack.blocks = nn.ModuleList(LeanBlock(narrow(block, self.width)) for block in blocks)
        heads, units = blocks[0].attention.heads, blocks[0].feed_forward.expand.out_features
        told = (
            f"width {self.width:g}: {share_of(heads, self.width)} of {heads} heads, "
            f"{share_of(units, self.width)} of {units} feed-forward units"
        )
        return model.evolve_quietly(module=module), told

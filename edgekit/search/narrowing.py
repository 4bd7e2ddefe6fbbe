"""Narrower blocks: how many heads and hidden units each keeps, the best by magnitude, the rest fitted to take over."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import numpy as np

from edgekit.batches import stacked
from edgekit.model import Model, Sample
from edgekit.passes.adaptive.lean import LeanBlock
from edgekit.passes.transformer.families import PlainStack
from edgekit.passes.weights.cut import Kept, cut_blocks
from edgekit.passes.weights.magnitude import magnitudes
from edgekit.passes.weights.refit import refit
from edgekit.passes.weights.stacks import blocks_of, plain, stack_path, with_blocks

# By block: (heads, hidden units) that stay; (0, 0): the block goes.
Shape = tuple[tuple[int, int], ...]
GONE = (0, 0)
FITTED = 64


def whole_shape(model: Model) -> Shape:
    """Of a Model with an encoder that is not captured."""
    blocks = blocks_of(plain(model))
    return tuple((block.attention.heads, block.feed_forward.expand.out_features) for block in blocks)


def narrow(model: Model, shape: Shape, samples: Sequence[Sample]) -> Model:
    """A copy, a plain stack of what stays, its mixing layers fitted on `samples`."""
    teacher = plain(model)
    blocks = blocks_of(teacher)
    scores = magnitudes(blocks)
    kept = [
        Kept(_best(scores.heads[index], heads), _best(scores.units[index], units))
        for index, (heads, units) in enumerate(shape)
    ]
    start = time.perf_counter()
    student = with_blocks(teacher, cut_blocks(blocks, kept))
    fitted = refit(teacher, student, present(shape), stacked(samples[:FITTED], model))
    words = ", ".join(f"{heads}x{units}" if heads else "gone" for heads, units in shape)
    return fitted.evolve("NarrowBlocks", f"heads x hidden units by block: {words}", time.perf_counter() - start)


def lean(model: Model) -> Model:
    """A plain Model's copy with the same blocks as exporters like them."""
    made = model.evolve_quietly(module=copy.deepcopy(model.module).eval())
    stack = made.module.get_submodule(stack_path(made))
    run = PlainStack(())
    run.blocks.extend(LeanBlock(block) for block in blocks_of(made))
    stack.run = run
    return made


def present(shape: Shape) -> tuple[int, ...]:
    """The blocks that stay."""
    return tuple(index for index, part in enumerate(shape) if part != GONE)


def _best(scores: np.ndarray, count: int) -> tuple[int, ...]:
    return tuple(sorted(int(index) for index in np.argsort(-scores, kind="stable")[:count]))

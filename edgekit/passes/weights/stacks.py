"""A Model whose encoder is a plain stack of blocks, and where these are."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from edgekit.errors import UsageError
from edgekit.model import Model
from edgekit.passes.transformer.block import EncoderBlock
from edgekit.passes.transformer.families import PlainStack, Stack, find_encoder, with_stack


def plain(model: Model) -> Model:
    """`model` (not captured) with the same weights as a stack of EncoderBlocks. Raises SourceError without one,
    UsageError where a pass has changed what runs between the blocks."""
    module = copy.deepcopy(model.module).eval()
    stack = _stack(module)
    if stack is not None and not isinstance(stack.run, PlainStack):
        raise UsageError(
            f"the tokens of {model.name} are pruned already, and its weights are pruned before them",
            hint="--prune-weights and --prune-tokens in one export are done in that order",
        )
    found = find_encoder(module, model.name)
    return model.evolve_quietly(module=with_stack(module, found, PlainStack(found.blocks)).eval())


def with_blocks(model: Model, blocks: Sequence[EncoderBlock]) -> Model:
    """`model`, plain or not, with `blocks` for its own."""
    module = copy.deepcopy(model.module).eval()
    stack = _stack(module)
    if stack is None:
        found = find_encoder(module, model.name)
        with_stack(module, found, PlainStack(tuple(blocks)))
    else:
        stack.run = PlainStack(tuple(blocks))
    return model.evolve_quietly(module=module.eval())


def blocks_of(model: Model) -> tuple[EncoderBlock, ...]:
    """Of a plain Model, its own."""
    return tuple(model.module.get_submodule(path) for path in block_paths(model))  # type: ignore[misc]


def block_paths(model: Model) -> tuple[str, ...]:
    """Of a plain Model: where its blocks are."""
    return tuple(name for name, child in model.module.named_modules() if isinstance(child, EncoderBlock))


def stack_path(model: Model) -> str:
    paths = [name for name, child in model.module.named_modules() if isinstance(child, Stack)]
    return str(paths[0])


def _stack(module: nn.Module) -> Stack | None:
    return next((child for child in module.modules() if isinstance(child, Stack)), None)

"""The encoder of a module as a plain stack of blocks, whether a pass has made it one before or not."""

from __future__ import annotations

from torch import nn

from edgekit.errors import SourceError
from edgekit.passes.transformer.block import EncoderBlock
from edgekit.passes.transformer.families import PlainStack, find_encoder, with_stack


def plain_stack(module: nn.Module, name: str) -> PlainStack:
    """Its stack of blocks; `module` is changed in place where its layers are still the family's own, so give a copy.

    Raises SourceError where there is no encoder of a known family, or several.
    """
    stacks = [child for child in module.modules() if isinstance(child, PlainStack)]
    if len(stacks) == 1 and all(isinstance(block, EncoderBlock) for block in stacks[0].blocks):
        return stacks[0]
    if stacks:
        raise SourceError(f"{name} is narrow already", hint="narrow the whole model to the width that is wanted")
    found = find_encoder(module, name)
    stack = PlainStack(found.blocks)
    with_stack(module, found, stack)
    return stack


def encoder_blocks(stack: PlainStack) -> list[EncoderBlock]:
    return [block for block in stack.blocks if isinstance(block, EncoderBlock)]


def block_paths(module: nn.Module, name: str) -> tuple[str, ...]:
    """Where the encoder's blocks sit in `module`, in order. Raises SourceError like `plain_stack`."""
    stacks = [path for path, child in module.named_modules() if isinstance(child, PlainStack)]
    place = f"{stacks[0]}.blocks" if len(stacks) == 1 else find_encoder(module, name).path
    return tuple(f"{place}.{index}" for index, _ in enumerate(module.get_submodule(place).children()))

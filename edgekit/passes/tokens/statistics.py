"""What calibration tells of an encoder's tokens: how many there are, and what attention each one receives."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.model import Model, Sample
from edgekit.passes.tokens.schedule import Shape
from edgekit.passes.tokens.scores import received
from edgekit.passes.tokens.state import Tokens, sizes_of
from edgekit.passes.transformer.block import EncoderBlock
from edgekit.passes.transformer.families import Found, find_encoder, with_stack


@dataclass(frozen=True)
class Statistics:
    """`received`: by block the attention that each token receives, [samples, T]."""

    shape: Shape
    received: tuple[np.ndarray, ...]


class _Watch(nn.Module):
    """The blocks as they are, and what passes through."""

    def __init__(self, blocks: Sequence[EncoderBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.seen: list[list[Tensor]] = [[] for _ in blocks]
        self.tokens: set[int] = set()

    def forward(self, values: Tensor, bias: Tensor | None = None) -> Tensor:
        self.tokens.add(values.shape[1])
        tokens = Tokens(values, sizes_of(bias))
        for block, seen in zip(self.blocks, self.seen, strict=True):
            assert isinstance(block, EncoderBlock)
            values, attended = block.attend(values, tokens.bias)
            seen.append(received(attended.weights, tokens.sizes))
            values = block.transform(values)
        return values


def watch(model: Model, samples: Sequence[Sample]) -> tuple[Found, Statistics]:
    """Of a Model before capture. Raises SourceError where it has no encoder of a known family, UsageError where the
    samples have different numbers of tokens."""
    module = copy.deepcopy(model.module).eval()
    found = find_encoder(module, model.name)
    watcher = _Watch(found.blocks)
    watched = model.evolve_quietly(module=with_stack(module, found, watcher))
    with torch.no_grad():
        for sample in samples:
            watched.forward(sample)
    if len(watcher.tokens) != 1:
        raise UsageError(
            f"samples of {min(watcher.tokens)} to {max(watcher.tokens)} tokens, allowed one number",
            hint="a graph with fewer tokens is static: pad the samples to one length",
        )
    own = found.blocks
    shape = Shape(
        tokens=watcher.tokens.pop(),
        protected=found.protected,
        width=own[0].attention.query.in_features,
        attention=tuple((b.attention.query.out_features, b.attention.value.out_features) for b in own),
        feed_forward=tuple(b.feed_forward.expand.out_features for b in own),
    )
    return found, Statistics(shape, tuple(torch.cat(rows).numpy() for rows in watcher.seen))

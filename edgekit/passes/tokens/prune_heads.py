"""The pass that takes whole heads out of an encoder. Shapes shrink; with pruned tokens in either order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.model import Model, Sample
from edgekit.passes.base import Pass
from edgekit.passes.tokens.heads import Moments, activity, cascade, columns_of, refit, strongest
from edgekit.passes.tokens.state import MASKED
from edgekit.passes.transformer.block import EncoderBlock, SelfAttention
from edgekit.passes.transformer.families import find_encoder, opened
from edgekit.progress import Progress

WATCHED = 32


@dataclass(frozen=True)
class PruneHeads(Pass):
    """`share`: of the heads that is left, in (0, 1], at least one a block. `by`: activity, each head by what it adds;
    cascade, SpAtten's importance accumulated from block to block. What goes is made up for by the projection behind
    the heads that stay, fitted to calibration samples (`heads.refit`), unless `refits` is off."""

    share: float = 0.75
    by: Literal["activity", "cascade"] = "activity"
    refits: bool = True

    def requires(self, model: Model) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"a share of {self.share:g} of the heads, allowed above 0 to 1")
        if self.by not in ("activity", "cascade"):
            raise UsageError(f"heads are chosen by {self.by!r}, allowed activity or cascade")
        find_encoder(model.module, model.name)

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        module, _, blocks = opened(model.module, model.name)
        own = [block for block in blocks if isinstance(block, EncoderBlock)]
        progress("watch heads", 0, 0)
        moments = watch_heads(model.evolve_quietly(module=module), own, _samples(model))
        heads = {block.attention.heads for block in own}
        if self.by == "cascade" and len(heads) > 1:
            raise UsageError("blocks of different numbers of heads, allowed one for a cascade", hint="by='activity'")
        kept = self._choose(own, moments)
        for block, seen, stay in zip(own, moments, kept, strict=True):
            block.attention = shrunk(block, seen, stay, self.refits)
        before, after = sum(seen.heads for seen in moments), sum(map(len, kept))
        return model.evolve_quietly(module=module), f"{before} heads to {after}, by {self.by}"

    def _choose(self, blocks: Sequence[EncoderBlock], moments: Sequence[Moments]) -> list[list[int]]:
        if self.by == "cascade":
            return cascade(torch.stack([seen.size / max(seen.count, 1) for seen in moments]), self.share)
        rows = [activity(seen, _scaled_output(block)) for block, seen in zip(blocks, moments, strict=True)]
        widest = max(len(row) for row in rows)
        # A head that an earlier pruning took does not count: its place is never chosen.
        padded = torch.full((len(rows), widest), -1.0, dtype=torch.float64)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        total = sum(len(row) for row in rows)
        kept = strongest(padded, self.share * total / padded.numel())
        return [[head for head in stay if head < len(row)] for stay, row in zip(kept, rows, strict=True)]


def watch_heads(model: Model, blocks: Sequence[EncoderBlock], samples: Sequence[Sample]) -> list[Moments]:
    """By block, over the content tokens of `samples`. `blocks` are those that run in the model's module."""
    found = [Moments.none(block.attention.value.out_features, block.attention.heads) for block in blocks]
    contents: list[Tensor | None] = [None] * len(blocks)

    def see_mask(index: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        bias = args[1] if len(args) > 1 else None
        contents[index] = None if bias is None else (bias[:, 0, 0, :] > MASKED)

    def see_heads(index: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        content, joint = contents[index], args[0]
        found[index].add(joint.flatten(0, 1) if content is None else joint[content.expand(joint.shape[0], -1)])

    handles = []
    for index, block in enumerate(blocks):
        handles.append(block.attention.register_forward_pre_hook(partial(see_mask, index)))
        handles.append(block.attention.output.register_forward_pre_hook(partial(see_heads, index)))
    try:
        for sample in samples:
            model.forward(sample)
    finally:
        for handle in handles:
            handle.remove()
    return found


def shrunk(block: EncoderBlock, seen: Moments, kept: list[int], refits: bool) -> SelfAttention:
    """The block's attention with its `kept` heads alone."""
    own = block.attention
    narrow, wide = own.query.out_features // own.heads, own.value.out_features // own.heads
    queries, values = columns_of(kept, narrow), columns_of(kept, wide)
    weight, bias = own.output.weight.detach(), own.output.bias
    if refits and len(kept) < own.heads:
        fitted, added = refit(weight, seen, kept)
    else:
        fitted, added = weight[:, values], torch.zeros(len(weight))
    output = _linear(fitted, added if bias is None else added + bias.detach())
    query, key = (_rows(layer, queries) for layer in (own.query, own.key))
    return SelfAttention(query, key, _rows(own.value, values), output, len(kept))


def _rows(layer: nn.Linear, rows: Tensor) -> nn.Linear:
    return _linear(layer.weight.detach()[rows], None if layer.bias is None else layer.bias.detach()[rows])


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


def _scaled_output(block: EncoderBlock) -> Tensor:
    """[C, D]: the projection behind the heads, layer scale in it."""
    weight = block.attention.output.weight.detach()
    with torch.no_grad():
        scale: Tensor = block.scale1(torch.ones(weight.shape[0]))
    return weight * scale.unsqueeze(1)


def _samples(model: Model) -> tuple[Sample, ...]:
    return (model.calibration or (model.example_inputs,))[:WATCHED]

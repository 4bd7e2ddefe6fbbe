"""What is left takes over: the layers that mix heads and units are fitted anew, in closed form, to the whole model's
sums on calibration data (least squares, one layer after the other, each on what the layers before now give)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.model import Model, Sample, forward_arguments
from edgekit.passes.transformer.block import EncoderBlock
from edgekit.passes.weights.stacks import blocks_of, stack_path
from edgekit.progress import Progress, silent

# Of the mean of the diagonal: as much as keeps units that fire alike from cancelling each other.
RIDGE = 0.1
# Attention masks add something this low or lower to the scores of padding.
PADDING_BELOW = -1e3

# Tokens [N, T, C] and the bias of the attention to tokens.
Part = Callable[[Tensor, Tensor | None], Tensor]


def refit(
    teacher: Model,
    student: Model,
    twins: Sequence[int],
    samples: Sequence[Sample],
    *,
    progress: Progress = silent,
) -> Model:
    """`student` (plain) with its blocks' `output` and `contract` layers fitted to those of `teacher` (plain).

    `twins[i]`: the teacher's block that the student's block i was cut from. A copy.
    """
    made = student.evolve_quietly(module=copy.deepcopy(student.module).eval())
    whole, own = blocks_of(teacher), blocks_of(made)
    theirs = entering(teacher, samples)
    ours = theirs
    done = 0
    with torch.no_grad():
        for twin, block in zip(twins, own, strict=True):
            progress("refit", twins.index(twin), len(twins))
            for other in whole[done:twin]:
                theirs = [state.through(other) for state in theirs]
            if ours is theirs and _same(whole[twin], block):
                # Nothing was cut so far: nothing is to be taken over.
                theirs = ours = [state.through(block) for state in ours]
            else:
                theirs, ours = _refit_block(whole[twin], block, theirs, ours)
            done = twin + 1
    return made


def _same(whole: EncoderBlock, block: EncoderBlock) -> bool:
    ours, theirs = block.state_dict(), whole.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], value) for name, value in theirs.items())


def _refit_block(
    whole: EncoderBlock, block: EncoderBlock, theirs: Sequence[Entering], ours: Sequence[Entering]
) -> tuple[list[Entering], list[Entering]]:
    """Fits `block` to `whole`, first its attention, then its feed-forward part; what leaves each of them."""
    wide, narrow = mixing_layers(whole), mixing_layers(block)
    behind = _fit(_attending(whole), _attending(block), wide[0], narrow[0], theirs, ours)
    return _fit(_transforming(whole), _transforming(block), wide[1], narrow[1], *behind)


@dataclass(frozen=True)
class Entering:
    """What goes into a block: tokens [N, T, C], and the bias of its attention [N, 1, 1, T]."""

    tokens: Tensor
    bias: Tensor | None = None

    def through(self, block: Part) -> Entering:
        return Entering(block(self.tokens, self.bias), self.bias)

    def content(self, values: Tensor) -> Tensor:
        """[N, T, C] -> [tokens, C], padding left out."""
        if self.bias is None or self.bias.shape[2] != 1:
            return values.flatten(0, -2)
        keep = (self.bias[:, 0, 0] > PADDING_BELOW).expand(values.shape[:-1])
        return values[keep]


def entering(model: Model, samples: Sequence[Sample]) -> list[Entering]:
    """What the encoder of a plain Model gets for `samples`."""
    caught: list[Entering] = []
    run = model.module.get_submodule(f"{stack_path(model)}.run")
    hook = run.register_forward_hook(lambda _, given, __: caught.append(Entering(*given)))
    try:
        for sample in samples:
            args, kwargs = forward_arguments(model.module, sample)
            with torch.no_grad():
                model.module(*args, **kwargs)
    finally:
        hook.remove()
    return caught


def mixing_layers(block: EncoderBlock) -> tuple[nn.Linear, nn.Linear]:
    return block.attention.output, block.feed_forward.contract


def _attending(block: EncoderBlock) -> Part:
    return lambda tokens, bias: block.attend(tokens, bias)[0]


def _transforming(block: EncoderBlock) -> Part:
    return lambda tokens, _: block.transform(tokens)


def _fit(
    wide: Part,
    narrow: Part,
    target: nn.Linear,
    layer: nn.Linear,
    theirs: Sequence[Entering],
    ours: Sequence[Entering],
) -> tuple[list[Entering], list[Entering]]:
    """Ridge regression of what `target` gives (within `wide`) on what `layer` gets (within `narrow`), towards the
    weights that it has. What then leaves `wide` and `narrow`."""
    size = layer.in_features + 1
    gram, cross = torch.zeros(size, size), torch.zeros(size, layer.out_features)
    caught: dict[str, Tensor] = {}
    hooks = [
        target.register_forward_hook(lambda _, __, answer: caught.update(wanted=answer)),
        layer.register_forward_hook(lambda _, given, __: caught.update(given=given[0])),
    ]
    behind = []
    try:
        for before, own in zip(theirs, ours, strict=True):
            behind.append(before.through(wide))
            own.through(narrow)
            rows = own.content(caught["given"])
            rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
            gram += rows.T @ rows
            cross += rows.T @ own.content(caught["wanted"])
    finally:
        for hook in hooks:
            hook.remove()
    bias = layer.bias if layer.bias is not None else torch.zeros(layer.out_features)
    had = torch.cat([layer.weight, bias.unsqueeze(1)], 1).T.double()
    lift = RIDGE * gram.diagonal()[:-1].double().mean() * torch.eye(size, dtype=torch.float64)
    lift[-1, -1] = 1e-6 * gram[-1, -1]
    factor = torch.linalg.cholesky(gram.double() + lift)
    solved = torch.cholesky_solve(cross.double() + lift @ had, factor).float().T
    layer.weight.copy_(solved[:, :-1])
    layer.bias = nn.Parameter(solved[:, -1].contiguous())
    return behind, [own.through(narrow) for own in ours]

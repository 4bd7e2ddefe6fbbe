"""LayerNorm that becomes BatchNorm in training and goes into the next linear layers (Guo et al., SLAB,
arXiv:2405.11582, section 3.1): on a device nothing of it is left to compute."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.distillation import Recovery, distill
from edgekit.errors import UsageError
from edgekit.model import Model, Sample
from edgekit.passes.base import Pass
from edgekit.passes.transformer.block import EncoderBlock
from edgekit.passes.weights.stacks import block_paths, blocks_of, plain, stack_path, with_blocks
from edgekit.progress import Progress

# By when in the training no LayerNorm is left: the rest settles the statistics.
GONE_BY = 0.7


class ProgressiveNorm(nn.Module):
    """share x LayerNorm + (1 - share) x (BatchNorm + eta x identity): equations 2 and 4.

    BatchNorm's statistics are over samples and tokens. `share` falls from 1 to 0.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        (width,) = norm.normalized_shape
        self.layer, self.batch = copy.deepcopy(norm), nn.BatchNorm1d(width, eps=norm.eps)
        self.eta = nn.Parameter(torch.zeros(()))
        self.register_buffer("share", torch.ones(()))
        self.share: Tensor
        with torch.no_grad():
            if norm.weight is not None:
                self.batch.weight.copy_(norm.weight)
            if norm.bias is not None:
                self.batch.bias.copy_(norm.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T, C] -> [N, T, C]."""
        normed: Tensor = self.batch(tokens.flatten(0, 1)).view_as(tokens) + self.eta * tokens
        if float(self.share) == 0:
            return normed
        mixed: Tensor = self.share * self.layer(tokens) + (1 - self.share) * normed
        return mixed

    def affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), [C] each, of what is left in eval once `share` is 0."""
        batch = self.batch
        assert batch.running_var is not None and batch.running_mean is not None
        scale = batch.weight / torch.sqrt(batch.running_var + batch.eps)
        return scale + self.eta, batch.bias - scale * batch.running_mean


def fold_norms(block: EncoderBlock) -> EncoderBlock:
    """A copy of a pre-norm block whose ProgressiveNorms (`share` 0) are in the layers behind them."""
    made = copy.deepcopy(block)
    own = made.attention
    for name, layers in (("norm1", (own.query, own.key, own.value)), ("norm2", (made.feed_forward.expand,))):
        norm = getattr(made, name)
        assert isinstance(norm, ProgressiveNorm) and float(norm.share) == 0
        with torch.no_grad():
            scale, shift = norm.affine()
            for layer in layers:
                added = layer.weight @ shift
                layer.bias = nn.Parameter(added if layer.bias is None else layer.bias + added)
                layer.weight.mul_(scale)
        setattr(made, name, nn.Identity())
    return made


@dataclass(frozen=True)
class ReplaceNorms(Pass):
    """The LayerNorms in the blocks of a pre-norm encoder become affine during `recovery` and are folded.

    `samples`: inputs to recover from, no labels; the Model's calibration without.
    """

    recovery: Recovery = Recovery()
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    checkpoint: Path | None = None

    def requires(self, model: Model) -> None:
        blocks = blocks_of(plain(model))
        if not all(block.is_prenorm for block in blocks):
            raise UsageError(
                f"the blocks of {model.name} normalize behind their residuals, allowed in front of their layers",
                hint="there the norm is on the residual itself, and no layer can take it in",
            )
        kinds = {type(norm).__name__ for block in blocks for norm in (block.norm1, block.norm2)}
        if kinds != {"LayerNorm"}:
            raise UsageError(f"the blocks of {model.name} have {', '.join(sorted(kinds))}, allowed LayerNorm")

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        samples: Sequence[Sample] = self.samples or model.calibration or (model.example_inputs,)
        teacher = plain(model)
        blocks = copy.deepcopy(blocks_of(teacher))
        norms = []
        for block in blocks:
            block.norm1, block.norm2 = (ProgressiveNorm(norm) for norm in (block.norm1, block.norm2))  # type: ignore[arg-type]
            norms += [block.norm1, block.norm2]
        student = with_blocks(teacher, blocks)

        def fade(behind: float) -> None:
            for norm in norms:
                norm.share.fill_(max(0.0, 1 - behind / GONE_BY))

        done = distill(
            teacher,
            student,
            samples,
            self.recovery,
            features=list(zip(block_paths(teacher), block_paths(student), strict=True)),
            trained=stack_path(student),
            each_step=fade,
            checkpoint=self.checkpoint,
            progress=progress,
        )
        fade(1.0)
        folded = with_blocks(teacher, [fold_norms(block) for block in blocks_of(student)])
        told = f"{len(norms)} LayerNorms folded; {done.steps} steps of recovery, seed {self.recovery.seed}"
        return folded, told

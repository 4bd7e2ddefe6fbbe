"""The pass: a Model whose encoder has fewer heads, hidden units or layers, recovered by distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.batches import stacked
from edgekit.distillation import Recovery, distill
from edgekit.errors import SourceError, UnknownNameError, UsageError
from edgekit.model import Model, Sample
from edgekit.passes.base import Pass
from edgekit.passes.transformer.block import EncoderBlock
from edgekit.passes.transformer.families import find_encoder
from edgekit.passes.weights.bottleneck import Learned, Masks, learn_masks
from edgekit.passes.weights.budget import Costs, Measure, evenly, within
from edgekit.passes.weights.cut import Kept, cut_blocks
from edgekit.passes.weights.gates import fold_gates
from edgekit.passes.weights.magnitude import find_mlps, magnitudes, narrow_mlps
from edgekit.passes.weights.refit import entering, refit
from edgekit.passes.weights.similarity import similarities, without_similar
from edgekit.passes.weights.stacks import block_paths, blocks_of, plain, stack_path, with_blocks
from edgekit.progress import Progress

METHODS = ("vib", "magnitude", "layers")
# Of the calibration samples so many are looked at for what has a closed form.
WATCHED = 512


@dataclass(frozen=True)
class PruneWeights(Pass):
    """`share` of the encoder's FLOPs (or parameters: `measure` size) that is left, in (0, 1]. `samples`: inputs to
    recover from, no labels; the Model's calibration without. `recovery` None: what is cut stays as it is.

    vib: parts by what information they carry (`masks`; Dutta et al., arXiv:2406.05276). magnitude: the same share of
    each block, by its largest weights (Martra, arXiv:2512.22671); in a module without an encoder its feed-forward
    layers alone. layers: whole blocks that change their tokens least. `refits`: mixing layers are fitted anew, by least
    squares, before anything is trained. `checkpoint`: a folder for what an interruption should not lose. `learned`:
    masks of an earlier `learn`, of whatever share.
    """

    method: str = "vib"
    share: float = 0.5
    measure: Measure = "flops"
    recovery: Recovery | None = Recovery()
    masks: Masks = Masks()
    refits: bool = True
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    checkpoint: Path | None = None
    learned: Learned | None = field(default=None, repr=False)

    def requires(self, model: Model) -> None:
        if self.method not in METHODS:
            raise UnknownNameError("weight method", self.method, METHODS)
        if not 0 < self.share <= 1:
            raise UsageError(f"the share is {self.share}, allowed above 0 to 1", hint="0.5 leaves half")
        if self._narrows_mlps(model):
            return
        try:
            find_encoder(model.module, model.name)
        except SourceError as error:
            raise SourceError(error.message, hint="--prune-weights none exports it as it is") from error

    def _narrows_mlps(self, model: Model) -> bool:
        if self.method != "magnitude":
            return False
        try:
            find_encoder(model.module, model.name)
        except SourceError:
            return bool(find_mlps(model.module))
        return False

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        samples = self.samples or model.calibration or (model.example_inputs,)
        if self._narrows_mlps(model):
            module, told = narrow_mlps(model.module, self.share, model.name)
            student = model.evolve_quietly(module=module.eval())
            return student, f"{told}{self._recover(model, student, samples, progress)}"
        teacher = plain(model)
        costs = self.costs(teacher)
        kept, blocks = self._choose(model, teacher, costs, samples, progress)
        student = with_blocks(teacher, cut_blocks(blocks, kept))
        twins = [index for index, part in enumerate(kept) if not part.whole_block_goes]
        if self.refits:
            student = refit(teacher, student, twins, stacked(samples[:WATCHED], model), progress=progress)
        told = f"{self.method}: {costs.share(kept):.2f} of the encoder's {_MEASURED[self.measure]}, {_shape(kept)}"
        return student, f"{told}{self._recover(teacher, student, samples, progress, twins)}"

    def costs(self, teacher: Model) -> Costs:
        """Of a plain Model, at the length of its example."""
        (state,) = entering(teacher, [teacher.example_inputs])
        return Costs.of(blocks_of(teacher), state.tokens.shape[1], self.measure)

    def _choose(
        self, model: Model, teacher: Model, costs: Costs, samples: Sequence[Sample], progress: Progress
    ) -> tuple[tuple[Kept, ...], tuple[EncoderBlock, ...]]:
        """What stays, and the blocks to cut it from. A budget that cannot be met is told before anything is trained."""
        blocks = blocks_of(teacher)
        if self.method == "magnitude":
            return evenly(magnitudes(blocks), costs, self.share), blocks
        if self.method == "layers":
            cosines = similarities(teacher, stacked(samples[:WATCHED], model))
            return without_similar(cosines, costs, self.share), blocks
        within(magnitudes(blocks), costs, self.share)
        learned = self.learned or self.learn(model, samples, progress)
        folded = tuple(fold_gates(block, gate) for block, gate in zip(blocks, learned.gates, strict=True))
        return within(learned.scores, costs, self.share), folded

    def learn(self, model: Model, samples: Sequence[Sample], progress: Progress) -> Learned:
        """The masks of vib for this share."""
        place = self.checkpoint / "masks" if self.checkpoint is not None else None
        costs = self.costs(plain(model))
        return learn_masks(model, samples, costs, self.share, self.masks, checkpoint=place, progress=progress)

    def _recover(
        self, teacher: Model, student: Model, samples: Sequence[Sample], progress: Progress, twins: Sequence[int] = ()
    ) -> str:
        if self.recovery is None:
            return ""
        pairs: list[tuple[str, str]] = []
        if twins:
            theirs = block_paths(teacher)
            # A block stands for those that went behind it, too: the next one sees what it saw before.
            ends = [*(twin - 1 for twin in twins[1:]), len(theirs) - 1]
            pairs = [(theirs[end], path) for end, path in zip(ends, block_paths(student), strict=True)]
        place = self.checkpoint / "recovery" if self.checkpoint is not None else None
        done = distill(
            teacher,
            student,
            samples,
            self.recovery,
            features=pairs,
            trained=stack_path(student) if twins else "",
            checkpoint=place,
            progress=progress,
        )
        return f"; {done.steps} steps of recovery on {len(samples)} samples, seed {self.recovery.seed}"


_MEASURED = {"flops": "FLOPs", "size": "parameters"}


def _shape(kept: Sequence[Kept]) -> str:
    """Heads and hidden units by block, as `4x608 2x512`."""
    return " ".join(f"{len(part.heads)}x{len(part.units)}" if part.heads else "-" for part in kept)

"""What the bottlenecks that learn have in common: their options, and what they refuse to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from edgekit.errors import DataError, PlanError, UnknownNameError
from edgekit.model import Model
from edgekit.passes.bottleneck.base import Bottleneck
from edgekit.passes.bottleneck.crossing import Crossing, has_open_batch
from edgekit.passes.bottleneck.features import FeatureSet, compute_features
from edgekit.passes.bottleneck.losses import LOSSES
from edgekit.passes.bottleneck.training import Run, Schedule
from edgekit.progress import Progress

# Of all samples, evenly spread: for the closed form, for the tables, for the ladder's steps.
FIT_SAMPLES, TABLE_SAMPLES, LADDER_SAMPLES = 1500, 3000, 128
FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class LearningBottleneck(Bottleneck):
    """`train`: a folder of pictures, labelled by class folders or not, or of arrays. `crops`: of all pictures together.
    `rates`: the ladder's length. `patience`: epochs without a better validation. `loss`: see losses.py. `rate_weight`:
    per cent of distortion that a per cent of rate is worth. `hidden`: width of the learned blocks, None for the number
    of channels. `adapter_rank`: of the changes to the tail's matrices. `errors`: shares of the outputs' variance that
    the finest and the coarsest step cost before training. `shipped`: take the package's checkpoint for this cut where
    there is one.
    """

    train: Path | None = None
    crops: int = 4000
    rates: int = 12
    epochs: int = 5
    patience: int = 3
    batch: int = 64
    learning_rate: float = 3e-4
    loss: str = "distillation"
    rate_weight: float = 1.5
    hidden: int | None = None
    adapter_rank: int = 8
    errors: tuple[float, float] = (4e-3, 0.5)
    regularization: float = 0.02
    rounding: float = 0.45
    seed: int = 0
    shipped: bool = True

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.epochs, self.batch, self.learning_rate, patience=self.patience, seed=self.seed)

    def features(
        self, head: Model, tail: Model, checkpoint: Path | None, progress: Progress, *, otherwise: str
    ) -> FeatureSet:
        """What crosses on the training data. `otherwise`: the way out where batches are of one size.

        Raises PlanError where they are, DataError for a training folder without usable data.
        """
        if not (has_open_batch(head) and has_open_batch(tail)):
            raise PlanError(
                f"{tail.name} takes batches of one size alone, and training needs batches",
                hint=f"declare the batch dynamic in the Model, or {otherwise}",
            )
        folder = None if checkpoint is None else checkpoint / "features"
        return compute_features(head, tail, self.train, folder, crops=self.crops, seed=self.seed, progress=progress)

    def check(self, data: FeatureSet) -> None:
        """Raises UnknownNameError for the loss, DataError for fewer samples than 8 or no labels where they are asked
        for."""
        if self.loss not in LOSSES:
            raise UnknownNameError("loss", self.loss, LOSSES)
        if len(data) < FEWEST_SAMPLES:
            raise DataError(
                f"{len(data)} training samples, allowed {FEWEST_SAMPLES} and more (some thousand are better)",
                hint="--train takes a folder of typical pictures, without labels",
            )
        if self.loss == "labels" and data.labels is None:
            raise DataError(
                "the training data have no labels",
                hint="put pictures into folders named after their classes, or train by distillation",
            )

    def width(self, crossing: Crossing) -> int:
        """Of the learned blocks."""
        return sum(crossing.channels) if self.hidden is None else self.hidden

    def facts(self, run: Run, data: FeatureSet, crossing: Crossing) -> dict[str, object]:
        """What a checkpoint tells of how it was made."""
        return {
            "hidden": self.width(crossing),
            "adapter_rank": self.adapter_rank,
            "epochs": run.epoch,
            "best_epoch": run.best_epoch,
            "samples": len(data),
            "loss": self.loss,
            "seed": self.seed,
        }


def learns(kind: object) -> TypeGuard[type[LearningBottleneck]]:
    """Whether what a name stands for in BOTTLENECKS, a class or another maker, is one that learns."""
    return isinstance(kind, type) and issubclass(kind, LearningBottleneck)

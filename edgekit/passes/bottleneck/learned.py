"""A learned bottleneck: the training-free transform, trained on with the tail and the rate in one loss.

BottleFit's two stages (Matsubara et al., arXiv:2201.02693, section 4): first the decoded features are made to lead the
unchanged tail to the teacher's later features, then everything above the frozen head is fine-tuned on the outputs, by
distillation without labels or with labels. Each sample of a batch has a step of its own drawn from the whole ladder,
and some lose their last components, so that one artifact serves every rate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from edgekit.errors import DataError, PlanError, UnknownNameError
from edgekit.model import Model, flatten_outputs
from edgekit.passes.bottleneck.base import Bottleneck, Squeezed
from edgekit.passes.bottleneck.coders import Coders, Trained, load_trained, pretrained
from edgekit.passes.bottleneck.crossing import Crossing, has_open_batch, with_coders
from edgekit.passes.bottleneck.deltas import AdaptedTail
from edgekit.passes.bottleneck.features import FeatureSet, compute_features
from edgekit.passes.bottleneck.ladder import find_steps, spread
from edgekit.passes.bottleneck.losses import LOSSES
from edgekit.passes.bottleneck.objective import RateObjective
from edgekit.passes.bottleneck.rate import LaplaceRate
from edgekit.passes.bottleneck.training import Schedule, train
from edgekit.passes.bottleneck.transform import fit_coders, fit_tables
from edgekit.passes.partition.candidates import cuts
from edgekit.progress import Progress, silent

FIT_SAMPLES, TABLE_SAMPLES, LADDER_SAMPLES, ANSWER_BATCH = 1500, 3000, 128, 64
FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class LearnedBottleneck(Bottleneck):
    """`train`: a folder of pictures, labelled by class folders or not, or of arrays; None: the calibration samples.
    `crops`: of all pictures together. `feature_epochs` of the first stage, `epochs` of the second; `patience`: epochs
    without a better validation. `loss`: distillation, labels, mse or cauchy-schwarz. `rate_weight`: per cent of
    distortion that a per cent of rate is worth. `hidden`: width of the learned blocks, None for the number of
    channels. `adapter_rank`: of the changes to the tail's matrices. `tail_drop`: share of samples that lose their last
    components. `errors`: shares of the outputs' variance that the finest and the coarsest step cost before training.
    `shipped`: take the package's checkpoint for this cut where there is one.
    """

    needs_training: ClassVar[bool] = True
    train: Path | None = None
    crops: int = 4000
    rates: int = 12
    feature_epochs: int = 1
    epochs: int = 5
    patience: int = 3
    batch: int = 64
    learning_rate: float = 3e-4
    loss: str = "distillation"
    rate_weight: float = 1.5
    hidden: int | None = None
    adapter_rank: int = 8
    tail_drop: float = 0.1
    errors: tuple[float, float] = (4e-3, 0.5)
    regularization: float = 0.02
    rounding: float = 0.45
    seed: int = 0
    shipped: bool = True

    def insert(
        self, head: Model, tail: Model, *, checkpoint: Path | None = None, progress: Progress = silent
    ) -> Squeezed:
        """`checkpoint`: a folder for features and states, from which an interrupted training goes on.

        Raises PlanError for a crossing that cannot be joined, DataError for a training folder without usable data.
        """
        shipped = pretrained(head, tail) if self.shipped else None
        if shipped is not None:
            return squeeze(head, tail, load_trained(shipped, head, tail), f"checkpoint {shipped.stem}")
        Crossing.of(tail)
        if not (has_open_batch(head) and has_open_batch(tail)):
            raise PlanError(
                f"{tail.name} takes batches of one size alone, and training needs batches",
                hint="declare the batch dynamic in the Model, or --bottleneck transform",
            )
        folder = None if checkpoint is None else checkpoint / "features"
        data = compute_features(head, tail, self.train, folder, crops=self.crops, seed=self.seed, progress=progress)
        trained = self.fit(head, tail, data, checkpoint=checkpoint, progress=progress)
        return squeeze(head, tail, trained, f"trained on {len(data)} samples")

    def fit(
        self,
        head: Model,
        tail: Model,
        data: FeatureSet,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> Trained:
        """Trains on features at hand. Raises DataError for fewer than 8, or without labels where they are asked for."""
        return self.fit_at(head, tail, data, None, checkpoint=checkpoint, progress=progress)

    def fit_at(
        self,
        head: Model,
        tail: Model,
        data: FeatureSet,
        steps: list[float] | None,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> Trained:
        """`fit` for a ladder of given `steps`, finest first; None finds them."""
        self._check(data)
        crossing = Crossing.of(tail)
        coders, found = self._begin(tail, crossing, data)
        steps = steps or found
        taught = [answers(tail.graph, crossing, data)]
        trained, held = data.split()
        objective = RateObjective(
            name="outputs",
            module=coders,
            crossing=crossing,
            data=data,
            teacher=taught[0],
            indices=trained,
            held=held if len(held) else trained,
            steps=steps,
            loss_name=self.loss,
            classifies="classification" in tail.task,
            rate_weight=self.rate_weight,
            tail_drop=self.tail_drop,
            seed=self.seed,
        )
        schedule = Schedule(self.epochs, self.batch, self.learning_rate, patience=self.patience, seed=self.seed)
        if self.feature_epochs:
            graph = with_taps(tail)
            first = replace(objective, name="features", frozen_tail=graph, teacher=None)
            train(
                first,
                replace(schedule, epochs=self.feature_epochs),
                checkpoint=None if checkpoint is None else checkpoint / "stage-1",
                progress=progress,
            )
        run = train(
            objective, schedule, checkpoint=None if checkpoint is None else checkpoint / "stage-2", progress=progress
        )
        facts = {
            "hidden": self._hidden(crossing),
            "adapter_rank": self.adapter_rank,
            "epochs": run.epoch,
            "best_epoch": run.best_epoch,
            "samples": len(data),
            "loss": self.loss,
            "seed": self.seed,
        }
        coders.round_to_half()
        return finish(coders, crossing, data, steps, self.rounding, facts)

    def _check(self, data: FeatureSet) -> None:
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

    def _hidden(self, crossing: Crossing) -> int:
        return sum(crossing.channels) if self.hidden is None else self.hidden

    def _begin(self, tail: Model, crossing: Crossing, data: FeatureSet) -> tuple[Coders, list[float]]:
        """The training-free transform of the same data, and the ladder that fits it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            features = data.take(spread(len(data), FIT_SAMPLES))
            encoder, decoder = fit_coders(
                tail, crossing, features, self.regularization, self.seed, self._hidden(crossing)
            )
        with torch.no_grad():
            components = encoder(*crossing.part(features))
        coders = Coders(
            encoder, decoder, AdaptedTail(tail.graph, self.adapter_rank, self.seed), LaplaceRate(components)
        )
        some = components[spread(len(components), LADDER_SAMPLES)]
        return coders, find_steps(coders.answer, some, self.rates, self.errors)


def answers(graph: GraphModule, crossing: Crossing, data: FeatureSet) -> list[Tensor]:
    """What the unchanged tail gives for all features: outputs [N, ...]."""
    found: list[list[Tensor]] = []
    with torch.no_grad():
        for start in range(0, len(data), ANSWER_BATCH):
            part = data.take(np.arange(start, min(start + ANSWER_BATCH, len(data))))
            found.append(flatten_outputs(graph(*crossing.part(part))))
    return [torch.cat(column) for column in zip(*found, strict=True)]


def with_taps(tail: Model, count: int = 2) -> GraphModule:
    """The tail's graph with `count` values of its middle as outputs in front of its own, evenly spaced in work."""
    single = [cut for cut in cuts(tail) if len(cut.crossing) == 1]
    total = max((cut.head_flops for cut in single), default=0.0)
    names = []
    for index in range(count if single else 0):
        wanted = total * (index + 1) / (count + 1)
        names.append(min(single, key=lambda cut: abs(cut.head_flops - wanted)).crossing[0])
    graph = tail.copy_graph()
    output = graph.graph.output_node()
    own = cast("tuple[torch.fx.Node, ...]", output.args[0])
    taps = [node for node in graph.graph.nodes if node.name in names and node not in own]
    output.args = ((*taps, *own),)
    graph.recompile()
    return graph.requires_grad_(False)


def finish(
    coders: Coders,
    crossing: Crossing,
    data: FeatureSet,
    steps: list[float],
    rounding: float,
    facts: dict[str, object],
) -> Trained:
    """Counts the symbols of trained coders on the training features."""
    chosen = spread(len(data), TABLE_SAMPLES)
    with torch.no_grad():
        parts = [
            coders.encoder(*crossing.part(data.take(chosen[start : start + ANSWER_BATCH])))
            for start in range(0, len(chosen), ANSWER_BATCH)
        ]
    tables = fit_tables(torch.cat(parts), crossing, steps, rounding)
    return Trained(coders, tuple(steps), tables, facts)


def squeeze(head: Model, tail: Model, trained: Trained, detail: str) -> Squeezed:
    """Head and tail with trained coders in between."""
    coders = trained.coders
    below, above = with_coders(head, tail, coders.encoder, coders.decoder, coders.tail.merged())
    return Squeezed(below, above, "transform", trained.tables, len(trained.steps), f"learned bottleneck, {detail}")

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

from edgekit.model import Model, flatten_outputs
from edgekit.passes.bottleneck.base import Squeezed
from edgekit.passes.bottleneck.coders import Coders, Trained, load_trained, pretrained
from edgekit.passes.bottleneck.crossing import Crossing, with_coders
from edgekit.passes.bottleneck.deltas import AdaptedTail
from edgekit.passes.bottleneck.features import FeatureSet
from edgekit.passes.bottleneck.ladder import find_steps, spread
from edgekit.passes.bottleneck.learning import FIT_SAMPLES, LADDER_SAMPLES, TABLE_SAMPLES, LearningBottleneck
from edgekit.passes.bottleneck.objective import RateObjective
from edgekit.passes.bottleneck.rate import LaplaceRate
from edgekit.passes.bottleneck.training import train
from edgekit.passes.bottleneck.transform import fit_coders, fit_tables
from edgekit.passes.partition.candidates import cuts
from edgekit.progress import Progress, silent

ANSWER_BATCH = 64


@dataclass(frozen=True)
class LearnedBottleneck(LearningBottleneck):
    """Without `train` on the calibration samples. `feature_epochs` of the first stage, `epochs` of the second.
    `tail_drop`: share of samples that lose their last components."""

    needs_training: ClassVar[bool] = True
    feature_epochs: int = 1
    tail_drop: float = 0.1

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
        data = self.features(head, tail, checkpoint, progress, otherwise="--bottleneck transform")
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
        self.check(data)
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
        if self.feature_epochs:
            graph = with_taps(tail)
            first = replace(objective, name="features", frozen_tail=graph, teacher=None)
            train(
                first,
                replace(self.schedule, epochs=self.feature_epochs),
                checkpoint=None if checkpoint is None else checkpoint / "stage-1",
                progress=progress,
            )
        run = train(
            objective,
            self.schedule,
            checkpoint=None if checkpoint is None else checkpoint / "stage-2",
            progress=progress,
        )
        coders.round_to_half()
        return finish(coders, crossing, data, steps, self.rounding, self.facts(run, data, crossing))

    def _begin(self, tail: Model, crossing: Crossing, data: FeatureSet) -> tuple[Coders, list[float]]:
        """The training-free transform of the same data, and the ladder that fits it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            features = data.take(spread(len(data), FIT_SAMPLES))
            encoder, decoder = fit_coders(
                tail, crossing, features, self.regularization, self.seed, self.width(crossing)
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

"""Bottleneck tokens: a sequence of tokens is pooled into k vectors, which are rounded, entropy-coded and sent.

Without training the pooling is the best separable one, in closed form; from there it is trained with learned queries
on either side and the tail, by distillation without labels. The vectors are nested: the ladder's rates send the first
16, 8, 4, 2 or 1 of the same, at a finer or a coarser step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekit.errors import DataError, PlanError, UnknownNameError
from edgekit.model import Model
from edgekit.passes.bottleneck.base import Bottleneck, Squeezed
from edgekit.passes.bottleneck.coders import Coders, Trained, load_trained, pretrained
from edgekit.passes.bottleneck.crossing import Crossing, has_open_batch, row_by_row, with_coders
from edgekit.passes.bottleneck.deltas import AdaptedTail
from edgekit.passes.bottleneck.features import FeatureSet, compute_features
from edgekit.passes.bottleneck.ladder import find_steps, spread
from edgekit.passes.bottleneck.learned import FEWEST_SAMPLES, answers
from edgekit.passes.bottleneck.losses import LOSSES
from edgekit.passes.bottleneck.rate import LaplaceRate
from edgekit.passes.bottleneck.tokens_checkpoint import PREFIX, empty_coders
from edgekit.passes.bottleneck.tokens_coding import TOKEN_MODE, token_coders, token_crossing
from edgekit.passes.bottleneck.tokens_ladder import Rung, check_counts, rungs, token_tables
from edgekit.passes.bottleneck.tokens_objective import TokenObjective
from edgekit.passes.bottleneck.training import Schedule, train
from edgekit.progress import Progress, silent

FIT_SAMPLES, TABLE_SAMPLES, LADDER_SAMPLES, CHUNK = 1500, 3000, 128, 64
COUNTS = (16, 8, 4, 2, 1)


@dataclass(frozen=True)
class TokenBottleneck(Bottleneck):
    """`counts`: the numbers of vectors that cross, most first; `rates`: the ladder's length, dealt to them evenly.

    `train`: a folder of pictures or arrays, labels not needed; None: the closed form, or the package's checkpoint for
    this cut where `shipped` and there is one. `crops`: of all pictures together. `patience`: epochs without a better
    validation. `loss`: see losses.py. `rate_weight`: per cent of distortion that a per cent of rate is worth.
    `hidden`: width of the decoder's block, None for the number of channels. `adapter_rank`: of the changes to the
    tail's matrices. `errors`: shares of the outputs' variance that the finest and the coarsest step cost, all vectors
    sent, before training.
    """

    needs_training: ClassVar[bool] = False
    counts: tuple[int, ...] = COUNTS
    rates: int = 10
    train: Path | None = None
    crops: int = 4000
    epochs: int = 5
    patience: int = 3
    batch: int = 64
    learning_rate: float = 1e-3
    loss: str = "distillation"
    rate_weight: float = 1.0
    hidden: int | None = None
    adapter_rank: int = 8
    errors: tuple[float, float] = (3e-3, 0.05)
    regularization: float = 0.02
    rounding: float = 0.45
    seed: int = 0
    shipped: bool = True

    def insert(
        self, head: Model, tail: Model, *, checkpoint: Path | None = None, progress: Progress = silent
    ) -> Squeezed:
        """`checkpoint`: a folder for features and states, from which an interrupted training goes on.

        Raises PlanError where no sequence of a fixed length crosses, UsageError for more vectors than tokens,
        DataError for a training folder without usable data.
        """
        token_crossing(tail)
        stored = pretrained(head, tail, prefix=PREFIX) if self.shipped else None
        if stored is not None:
            trained = load_trained(stored, head, tail, empty_coders)
            return squeeze_tokens(head, tail, trained, f"checkpoint {stored.stem}")
        if self.train is None:
            return self._closed_form(head, tail, progress)
        if not (has_open_batch(head) and has_open_batch(tail)):
            raise PlanError(
                f"{tail.name} takes batches of one size alone, and training needs batches",
                hint="declare the batch dynamic in the Model, or leave --train away",
            )
        folder = None if checkpoint is None else checkpoint / "features"
        data = compute_features(head, tail, self.train, folder, crops=self.crops, seed=self.seed, progress=progress)
        trained = self.fit(head, tail, data, checkpoint=checkpoint, progress=progress)
        return squeeze_tokens(head, tail, trained, f"trained on {len(data)} samples")

    def _closed_form(self, head: Model, tail: Model, progress: Progress) -> Squeezed:
        progress("find the axes of the tokens", 0, 0)
        crossing = token_crossing(tail)
        features = crossing.features(tail.calibration)
        check_counts(self.counts, features.shape[TOKEN_MODE])
        encoder, decoder = token_coders(
            tail, crossing, features, self.counts[0], self.regularization, self.seed, self._hidden(crossing)
        )
        below, above = with_coders(head, tail, encoder, decoder)
        components = encode_all(encoder, crossing, features)
        some = components[spread(len(components), LADDER_SAMPLES)]
        steps = find_steps(row_by_row(above), some, self.rates, self.errors)
        ladder = rungs(self.counts, steps)
        tables = token_tables(components, ladder, self.rounding)
        detail = f"{self.counts[0]} vectors and fewer, in closed form; no training"
        return Squeezed(below, above, "transform", tables, len(ladder), detail)

    def fit(
        self,
        head: Model,
        tail: Model,
        data: FeatureSet,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> Trained:
        """Trains on features at hand. Raises DataError for fewer than 8, UnknownNameError, UsageError."""
        if self.loss not in LOSSES:
            raise UnknownNameError("loss", self.loss, LOSSES)
        if len(data) < FEWEST_SAMPLES:
            raise DataError(
                f"{len(data)} training samples, allowed {FEWEST_SAMPLES} and more (some thousand are better)",
                hint="--train takes a folder of typical pictures, without labels",
            )
        crossing = token_crossing(tail)
        check_counts(self.counts, data.features.shape[TOKEN_MODE])
        coders, steps = self._begin(tail, crossing, data)
        ladder = rungs(self.counts, steps)
        trained, held = data.split()
        objective = TokenObjective(
            module=coders,
            crossing=crossing,
            data=data,
            teacher=answers(tail.graph, crossing, data),
            indices=trained,
            held=held if len(held) else trained,
            ladder=ladder,
            loss_name=self.loss,
            classifies="classification" in tail.task,
            rate_weight=self.rate_weight,
        )
        schedule = Schedule(self.epochs, self.batch, self.learning_rate, patience=self.patience, seed=self.seed)
        run = train(objective, schedule, checkpoint=checkpoint and checkpoint / "tokens", progress=progress)
        coders.round_to_half()
        facts = {
            "counts": [rung.count for rung in ladder],
            "hidden": self._hidden(crossing),
            "adapter_rank": self.adapter_rank,
            "epochs": run.epoch,
            "best_epoch": run.best_epoch,
            "samples": len(data),
            "loss": self.loss,
            "seed": self.seed,
        }
        some = data.take(spread(len(data), TABLE_SAMPLES))
        tables = token_tables(encode_all(coders.encoder, crossing, some), ladder, self.rounding)
        return Trained(coders, tuple(steps), tables, facts)

    def _hidden(self, crossing: Crossing) -> int:
        return sum(crossing.channels) if self.hidden is None else self.hidden

    def _begin(self, tail: Model, crossing: Crossing, data: FeatureSet) -> tuple[Coders, list[float]]:
        """The closed form on the same data, and the steps that fit it."""
        features = data.take(spread(len(data), FIT_SAMPLES))
        encoder, decoder = token_coders(
            tail, crossing, features, self.counts[0], self.regularization, self.seed, self._hidden(crossing)
        )
        components = encode_all(encoder, crossing, features)
        adapted = AdaptedTail(tail.graph, self.adapter_rank, self.seed)
        coders = Coders(encoder, decoder, adapted, LaplaceRate(components))
        some = components[spread(len(components), LADDER_SAMPLES)]
        return coders, find_steps(coders.answer, some, self.rates, self.errors)


@torch.no_grad()
def encode_all(encoder: nn.Module, crossing: Crossing, features: Tensor) -> Tensor:
    """Components of all `features`, a chunk at a time."""
    return torch.cat([encoder(*crossing.part(part)) for part in torch.split(features, CHUNK)])


def ladder_of(trained: Trained) -> tuple[Rung, ...]:
    return tuple(Rung(int(count), step) for count, step in zip(trained.facts["counts"], trained.steps, strict=True))


def squeeze_tokens(head: Model, tail: Model, trained: Trained, detail: str) -> Squeezed:
    """Head and tail with trained coders in between."""
    coders = trained.coders
    below, above = with_coders(head, tail, coders.encoder, coders.decoder, coders.tail.merged())
    told = f"{max(trained.facts['counts'])} nested vectors and fewer, {detail}"
    return Squeezed(below, above, "transform", trained.tables, len(trained.steps), told)

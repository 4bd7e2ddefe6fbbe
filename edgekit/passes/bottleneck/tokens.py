"""Bottleneck tokens: a sequence of tokens is pooled into k vectors, which are rounded, entropy-coded and sent.

Without training the pooling is the best separable one, in closed form; from there it is trained with learned queries
on either side and the tail, by distillation without labels. The vectors are nested: the ladder's rates send the first
16, 8, 4, 2 or 1 of the same, at a finer or a coarser step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.model import Model
from edgekit.passes.bottleneck.base import Squeezed
from edgekit.passes.bottleneck.coders import Coders, Trained, load_trained, pretrained
from edgekit.passes.bottleneck.crossing import Crossing, row_by_row, with_coders
from edgekit.passes.bottleneck.deltas import AdaptedTail
from edgekit.passes.bottleneck.features import FeatureSet
from edgekit.passes.bottleneck.ladder import find_steps, spread
from edgekit.passes.bottleneck.learned import answers
from edgekit.passes.bottleneck.learning import FIT_SAMPLES, LADDER_SAMPLES, TABLE_SAMPLES, LearningBottleneck
from edgekit.passes.bottleneck.rate import LaplaceRate
from edgekit.passes.bottleneck.tokens_checkpoint import PREFIX, empty_coders
from edgekit.passes.bottleneck.tokens_coding import TOKEN_MODE, token_coders, token_crossing
from edgekit.passes.bottleneck.tokens_ladder import Rung, check_counts, rungs, token_tables
from edgekit.passes.bottleneck.tokens_objective import TokenObjective
from edgekit.passes.bottleneck.training import train
from edgekit.progress import Progress, silent

CHUNK = 64
COUNTS = (16, 8, 4, 2, 1)


@dataclass(frozen=True)
class TokenBottleneck(LearningBottleneck):
    """`counts`: the numbers of vectors that cross, most first, to which the `rates` are dealt evenly. Without `train`
    the closed form, or the package's checkpoint. `errors` with all vectors sent.
    """

    counts: tuple[int, ...] = COUNTS
    rates: int = 10
    learning_rate: float = 1e-3
    rate_weight: float = 1.0
    errors: tuple[float, float] = (3e-3, 0.05)

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
        data = self.features(head, tail, checkpoint, progress, otherwise="leave --train away")
        trained = self.fit(head, tail, data, checkpoint=checkpoint, progress=progress)
        return squeeze_tokens(head, tail, trained, f"trained on {len(data)} samples")

    def _closed_form(self, head: Model, tail: Model, progress: Progress) -> Squeezed:
        progress("find the axes of the tokens", 0, 0)
        crossing = token_crossing(tail)
        features = crossing.features(tail.calibration)
        check_counts(self.counts, features.shape[TOKEN_MODE])
        encoder, decoder = token_coders(
            tail, crossing, features, self.counts[0], self.regularization, self.seed, self.width(crossing)
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
        self.check(data)
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
        run = train(objective, self.schedule, checkpoint=checkpoint and checkpoint / "tokens", progress=progress)
        coders.round_to_half()
        facts = {"counts": [rung.count for rung in ladder], **self.facts(run, data, crossing)}
        some = data.take(spread(len(data), TABLE_SAMPLES))
        tables = token_tables(encode_all(coders.encoder, crossing, some), ladder, self.rounding)
        return Trained(coders, tuple(steps), tables, facts)

    def _begin(self, tail: Model, crossing: Crossing, data: FeatureSet) -> tuple[Coders, list[float]]:
        """The closed form on the same data, and the steps that fit it."""
        features = data.take(spread(len(data), FIT_SAMPLES))
        encoder, decoder = token_coders(
            tail, crossing, features, self.counts[0], self.regularization, self.seed, self.width(crossing)
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

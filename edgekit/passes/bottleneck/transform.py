"""Training-free transform coding: rotate features onto principal axes in the tail's metric, round, entropy-code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from edgekit.model import Model
from edgekit.passes.bottleneck.axes import output_gradients
from edgekit.passes.bottleneck.base import Bottleneck, Squeezed
from edgekit.passes.bottleneck.coding import Decoder, Encoder, coders
from edgekit.passes.bottleneck.crossing import Crossing, row_by_row, with_coders
from edgekit.passes.bottleneck.ladder import find_steps, kept_channels, spread
from edgekit.progress import Progress, silent
from edgekit.runtimes.codecs.transform_tables import fit_transform_tables

GRADIENT_SAMPLES, LADDER_SAMPLES = 512, 64


@dataclass(frozen=True)
class TransformCoding(Bottleneck):
    """`rates`: steps of the ladder. `regularization`: of the sensitivity, as a share of its mean. `sensitive`: False
    takes the axes of the covariance alone. `rounding`: less than 0.5 widens the zero bin. `seed`: of the projections.
    """

    needs_training: ClassVar[bool] = False
    rates: int = 16
    regularization: float = 0.02
    sensitive: bool = True
    rounding: float = 0.45
    seed: int = 0

    def insert(
        self, head: Model, tail: Model, *, checkpoint: Path | None = None, progress: Progress = silent
    ) -> Squeezed:
        """`checkpoint` is not used. Raises PlanError for a crossing that cannot be joined, DataError for too little
        calibration data."""
        crossing = Crossing.of(tail)
        progress("find the axes of the features", 0, 0)
        features = crossing.features(tail.calibration)
        encoder, decoder = fit_coders(
            tail, crossing, features, self.regularization if self.sensitive else None, self.seed
        )
        below, above = with_coders(head, tail, encoder, decoder)
        with torch.no_grad():
            components = encoder(features)
        some = components[spread(len(components), LADDER_SAMPLES)]
        steps = find_steps(row_by_row(above), some, self.rates, progress=progress)
        progress("count symbols", 0, 0)
        tables = fit_tables(components, crossing, steps, self.rounding)
        detail = (
            f"{sum(crossing.channels)} channels on axes of the tail's sensitivity"
            if self.sensitive
            else f"{sum(crossing.channels)} channels on axes of their covariance"
        )
        positions = f", along {len(crossing.positions)} spatial modes too" if crossing.positions else ""
        return Squeezed(below, above, "transform", tables, self.rates, f"{detail}{positions}; no training")


def fit_coders(
    tail: Model,
    crossing: Crossing,
    features: Tensor,
    regularization: float | None,
    seed: int,
    hidden: int = 0,
) -> tuple[Encoder, Decoder]:
    """Encoder and decoder of `features` [N, ...]; `regularization` None: without the tail's sensitivity."""
    gradients = None
    if regularization is not None:
        some = features[spread(len(features), GRADIENT_SAMPLES)]
        run = row_by_row(tail)
        gradients = output_gradients(lambda values: run(*crossing.part(values)), some, seed=seed)
    axes = crossing.axes(features, gradients, regularization or 0.0)
    return coders(axes, crossing.mean(features), crossing.channels, hidden)


def fit_tables(components: Tensor, crossing: Crossing, steps: list[float], rounding: float) -> bytes:
    """Of the transform codec, for components [N, ...]."""
    values = components.numpy()
    kept = kept_channels(values, steps, crossing.axis, rounding)
    return fit_transform_tables(values, steps, crossing.axis, crossing.per_position, rounding=rounding, kept=kept)

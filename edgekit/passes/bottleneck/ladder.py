"""The steps of a rate ladder, and what a codec makes of components at each: on the build side, before packing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import DataError
from edgekit.progress import Progress, silent

FINEST_ERROR, COARSEST_ERROR = 2e-3, 0.5  # of the outputs' power: 27 dB and 3 dB
SEARCH = 9  # halvings of 20 octaves: to a twenty-fifth of an octave


def geometric(finest: float, coarsest: float, rates: int) -> list[float]:
    """`rates` steps, finest first, each the same multiple of the one before."""
    return [finest * (coarsest / finest) ** (index / max(1, rates - 1)) for index in range(rates)]


def find_steps(
    answer: Callable[[Tensor], Sequence[Tensor]],
    components: Tensor,
    rates: int,
    errors: tuple[float, float] = (FINEST_ERROR, COARSEST_ERROR),
    progress: Progress = silent,
) -> list[float]:
    """Steps at which rounding `components` [N, ...] to their multiples spoils the outputs of `answer` (decoder and
    tail) by `errors`, as shares of the outputs' variance, and those between.

    Raises DataError where the outputs do not depend on the components.
    """
    with torch.no_grad():
        exact = [value.double() for value in answer(components) if value.is_floating_point()]
        power = sum(float((value - value.mean(0)).square().sum()) for value in exact) if len(components) > 1 else 0.0
        power = power or sum(float(value.square().sum()) for value in exact)
        deviation = float(components.square().mean().sqrt())
        if power == 0 or deviation == 0:
            raise DataError(
                "the outputs do not depend on what crosses at this cut on the calibration data",
                hint="give typical inputs that differ from each other, or cut elsewhere",
            )

        asked = itertools.count()

        def error(step: float) -> float:
            progress("find the steps of the ladder", next(asked), SEARCH * len(errors))
            coarse = [value for value in answer(torch.round(components / step) * step) if value.is_floating_point()]
            return sum(float((a - b).square().sum()) for a, b in zip(coarse, exact, strict=True)) / power

        found = [_bisect(error, deviation, wanted) for wanted in errors]
    return geometric(found[0], max(found[1], found[0] * 2), rates)


def _bisect(error: Callable[[float], float], deviation: float, wanted: float) -> float:
    """In log2 of the step, from 2^-12 to 2^8 deviations; the error grows with the step but for noise."""
    low, high = -12.0, 8.0
    for _ in range(SEARCH):
        middle = (low + high) / 2
        low, high = (middle, high) if error(deviation * 2**middle) < wanted else (low, middle)
    return deviation * 2 ** ((low + high) / 2)


def kept_channels(components: np.ndarray, steps: Sequence[float], axis: int, rounding: float) -> list[int]:
    """For each step, how many leading channels of [N, ...] are ever anything but zero; all, where there are too few
    rows to say so: axes beyond their number are zero on these rows, and on no others."""
    rows = np.abs(np.moveaxis(components, axis, -1)).reshape(-1, components.shape[axis])
    if len(rows) <= rows.shape[1]:
        return [rows.shape[1]] * len(steps)
    largest = rows.max(0)
    counts = []
    for step in steps:
        alive = np.flatnonzero(np.floor(largest / np.float32(step) + np.float32(rounding)) > 0)
        counts.append(int(alive[-1]) + 1 if len(alive) else 1)
    return counts


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` indices, evenly spaced."""
    return (
        sorted({math.floor(index * count / limit) for index in range(limit)}) if count > limit else list(range(count))
    )

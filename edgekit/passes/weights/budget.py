"""What an encoder's heads and hidden units cost, and which of them a budget keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgekit.errors import UsageError
from edgekit.passes.transformer.block import EncoderBlock
from edgekit.passes.weights.cut import Kept

Measure = Literal["flops", "size"]

# Kernels work on whole vectors: hidden units stay in numbers that divide by this.
GRANULE = 8


@dataclass(frozen=True)
class Costs:
    """Of one head and of one hidden unit, by block: FLOPs of one sample, or parameters."""

    head: tuple[float, ...]
    unit: tuple[float, ...]
    heads: tuple[int, ...]
    units: tuple[int, ...]

    @classmethod
    def of(cls, blocks: Sequence[EncoderBlock], tokens: int, measure: Measure) -> Costs:
        """`tokens` of one sample: what attention costs in FLOPs grows with their square."""
        head, unit = [], []
        for block in blocks:
            own, width = block.attention, block.attention.query.in_features
            both = 2 * own.head_width + 2 * (own.value.out_features // own.heads)
            if measure == "flops":
                head.append(2.0 * tokens * width * both + 2.0 * tokens * tokens * both / 2)
                unit.append(4.0 * tokens * width)
            else:
                head.append(float(width * both + 3 * both / 4))
                unit.append(float(2 * width + 1))
        return cls(
            tuple(head),
            tuple(unit),
            tuple(block.attention.heads for block in blocks),
            tuple(block.feed_forward.expand.out_features for block in blocks),
        )

    @property
    def whole(self) -> float:
        return sum(self.head[i] * self.heads[i] + self.unit[i] * self.units[i] for i in range(len(self.head)))

    def share(self, kept: Sequence[Kept]) -> float:
        """Of the whole, in [0, 1]."""
        left = sum(h * len(k.heads) + u * len(k.units) for h, u, k in zip(self.head, self.unit, kept, strict=True))
        return left / self.whole


@dataclass(frozen=True)
class Scores:
    """How much each part is worth, by block: `heads` float [H], `units` float [F], `layers` float [L].

    Parts of all blocks compare. A layer's own score, where it is below 0, bounds those of its parts.
    """

    heads: tuple[np.ndarray, ...]
    units: tuple[np.ndarray, ...]
    layers: np.ndarray

    def bounded(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Where a layer is worth less than nothing: elsewhere all its parts would tie, and go at once."""
        return tuple(
            (np.minimum(heads, layer), np.minimum(units, layer)) if layer < 0 else (heads, units)
            for heads, units, layer in zip(self.heads, self.units, self.layers, strict=True)
        )


def within(scores: Scores, costs: Costs, share: float) -> tuple[Kept, ...]:
    """The best parts whose costs are nearest below `share` of the whole: one threshold for all blocks.

    A block of which nothing reaches it goes, unless it is the last one left; any other keeps a head and GRANULE units.
    Raises UsageError where even the least costs more, saying what that is.
    """
    parts = scores.bounded()
    if share >= 1:
        return tuple(Kept(tuple(range(h)), tuple(range(u))) for h, u in zip(costs.heads, costs.units, strict=True))
    thresholds = np.unique(np.concatenate([value for pair in parts for value in pair]))
    low, high = 0, len(thresholds) - 1
    least = _above(parts, thresholds[high])
    if costs.share(least) > share:
        raise UsageError(
            f"a budget of {share:g} of the encoder cannot be met, {costs.share(least):.3f} at least",
            hint=f"ask for a share of {math.ceil(1000 * costs.share(least)) / 1000:g} or more",
        )
    while low < high:
        middle = (low + high) // 2
        if costs.share(_above(parts, thresholds[middle])) <= share:
            high = middle
        else:
            low = middle + 1
    return _above(parts, thresholds[high])


def evenly(scores: Scores, costs: Costs, share: float) -> tuple[Kept, ...]:
    """The same share of heads and of units in each block, the best of each. Raises as `within`."""

    def kept_at(part: float) -> tuple[Kept, ...]:
        return tuple(
            Kept(_best(heads, max(1, round(part * len(heads)))), _best(units, _granules(part * len(units), len(units))))
            for heads, units in zip(scores.heads, scores.units, strict=True)
        )

    least = costs.share(kept_at(0.0))
    if least > share:
        raise UsageError(
            f"a budget of {share:g} of the encoder cannot be met, {least:.3f} at least",
            hint=f"ask for a share of {math.ceil(1000 * least) / 1000:g} or more",
        )
    fitting = [part for part in np.linspace(0, 1, 1025) if costs.share(kept_at(float(part))) <= share + 1e-9]
    return kept_at(float(max(fitting)))


def _above(parts: Sequence[tuple[np.ndarray, np.ndarray]], threshold: float) -> tuple[Kept, ...]:
    kept = []
    for heads, units in parts:
        reached = int((heads >= threshold).sum()), int((units >= threshold).sum())
        if not any(reached):
            kept.append(Kept((), ()))
        else:
            kept.append(Kept(_best(heads, max(1, reached[0])), _best(units, _granules(reached[1], len(units)))))
    return tuple(kept)


def _granules(wanted: float, there: int) -> int:
    return min(there, max(GRANULE, round(wanted / GRANULE) * GRANULE))


def _best(values: np.ndarray, count: int) -> tuple[int, ...]:
    """The numbers of the `count` largest, sorted; the first of equal ones."""
    return tuple(sorted(int(index) for index in np.argsort(-values, kind="stable")[:count]))

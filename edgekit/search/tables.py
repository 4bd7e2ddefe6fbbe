"""What a knob costs at each of its settings, as it was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.passes.tokens.schedule import Shape as TokenShape
from edgekit.search.narrowing import GONE, Shape


@dataclass(frozen=True)
class Measured:
    """One change alone, or several at once: `error` energy, `drop` in points, on calibration samples."""

    error: float
    drop: float


@dataclass(frozen=True)
class TokenTable:
    """`potential[i]`: by level, the error of block i leaving so many. `together`: whole schedules beside their sum."""

    shape: TokenShape
    fewest_share: float
    levels: tuple[int, ...]
    potential: tuple[tuple[float, ...], ...]
    probes: tuple[Measured, ...]
    together: tuple[tuple[float, Measured], ...]

    def cost(self, block: int, before: int, after: int) -> float:
        rows = self.potential[block]
        return max(0.0, rows[self.levels.index(after)] - rows[self.levels.index(before)])

    def allows(self, before: int, after: int) -> bool:
        content = before - self.shape.protected
        return after == before or (
            after < before and after - self.shape.protected >= math.ceil(self.fewest_share * content)
        )


@dataclass(frozen=True)
class PrecisionTable:
    """`errors`: by group, alone. `whole`: everything rounded."""

    errors: Mapping[str, float]
    whole: Measured


@dataclass(frozen=True)
class WidthTable:
    """By block, alone: what fewer heads, fewer hidden units, or no block at all cost. `whole`: heads and units that
    there are. `together`, `shallow`: shapes of many narrower blocks, and of few blocks, beside the sum."""

    whole: Shape
    heads: tuple[Mapping[int, float], ...]
    units: tuple[Mapping[int, float], ...]
    gone: tuple[float, ...]
    probes: tuple[Measured, ...]
    together: tuple[tuple[float, Measured], ...] = ()
    shallow: tuple[tuple[float, Measured], ...] = ()

    @property
    def half(self) -> Shape:
        """About half of the heads and units of every block."""
        return tuple(
            (_nearest(heads, self.whole[block][0]), _nearest(units, self.whole[block][1]))
            for block, (heads, units) in enumerate(zip(self.heads, self.units, strict=True))
        )

    def cost(self, shape: Shape) -> float:
        """What the narrower and the missing blocks of `shape` cost alone, added up."""
        rows = zip(self.heads, self.units, self.gone, shape, strict=True)
        return sum(gone if part == GONE else heads[part[0]] + units[part[1]] for heads, units, gone, part in rows)

    def with_cheapest(self, parts: Shape, count: int) -> Shape:
        """The whole shape, but for the `count` blocks that cost least alone as in `parts`, which are as there."""
        alone = [self.cost((*self.whole[:block], part, *self.whole[block + 1 :])) for block, part in enumerate(parts)]
        chosen = sorted(range(len(parts)), key=alone.__getitem__)[:count]
        return tuple(part if block in chosen else self.whole[block] for block, part in enumerate(parts))


def _nearest(counts: Mapping[int, float], whole: int) -> int:
    """Of those that are fewer than all the one nearest to half; all where there is no other."""
    return min((count for count in counts if count < whole), key=lambda count: abs(count - whole / 2), default=whole)

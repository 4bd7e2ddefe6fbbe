"""What fewer tokens cost block by block, from schedules that reduce at one block each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgekit.passes.tokens.schedule import Shape as TokenShape
from edgekit.search.tables import Measured

# Shares of the content tokens between which schedules choose, and those at which the error is measured.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.25)
PROBED = (0.8, 0.65, 0.5, 0.25)


def levels_of(shape: TokenShape) -> tuple[int, ...]:
    """Numbers of tokens, most first, protected ones counted."""
    content = shape.tokens - shape.protected
    return tuple(dict.fromkeys(shape.protected + max(1, round(share * content)) for share in SHARES))


class TokenProbe:
    """The potentials of a method, by schedules that reduce at one block, or just before it where one step may not go
    so far at once."""

    def __init__(self, shape: TokenShape, fewest_share: float, measure: Callable[[tuple[int, ...]], Measured]) -> None:
        self.shape, self.fewest_share, self.measure = shape, fewest_share, measure
        self.seen: list[Measured] = []
        self._known: list[list[tuple[int, float]]] = []

    def potential(self, block: int, levels: Sequence[int]) -> tuple[float, ...]:
        """By level, interpolated between what was measured; levels that cannot be reached cost without end."""
        content, protected = self.shape.tokens - self.shape.protected, self.shape.protected
        own: list[tuple[int, float]] = [(self.shape.tokens, 0.0)]
        self._known.append(own)
        for share in PROBED:
            target = protected + max(1, round(share * content))
            keep = self._towards(block, target)
            if keep is None or target >= own[-1][0]:
                continue
            measured = self.measure(keep)
            self.seen.append(measured)
            before, earlier = self.shape.tokens, 0.0
            for index, count in enumerate(keep[:block]):
                earlier += self.at(index, count) - self.at(index, before)
                before = count
            own.append((target, max(own[-1][1], measured.error - earlier + self.at(block, before))))
        return tuple(self.at(block, level) for level in levels)

    def at(self, block: int, count: int) -> float:
        own = self._known[block]
        if count >= own[-1][0]:
            return float(np.interp(-count, [-known for known, _ in own], [error for _, error in own]))
        # Below the last probe the error goes on as steeply as it came.
        (above, first), (last, error) = own[-2] if len(own) > 1 else (own[0][0] + 1, 0.0), own[-1]
        return error + (error - first) / max(1, above - last) * (last - count)

    def together(self, removed: float) -> tuple[float, Measured]:
        """An even schedule down to `1 - removed` of the content: (the sum of its costs, what it costs)."""
        content, blocks = self.shape.tokens - self.shape.protected, self.shape.blocks
        keep = tuple(
            self.shape.protected + max(1, round(content * (1 - removed * (block + 1) / blocks)))
            for block in range(blocks)
        )
        total, before = 0.0, self.shape.tokens
        for block, count in enumerate(keep):
            total += max(0.0, self.at(block, count) - self.at(block, before))
            before = count
        measured = self.measure(keep)
        self.seen.append(measured)
        return total, measured

    def _towards(self, block: int, target: int) -> tuple[int, ...] | None:
        """All tokens as long as they can stay, `target` from `block` on; None where it cannot be reached there."""
        keep = [target]
        for _ in range(block):
            content = keep[0] - self.shape.protected
            most = self.shape.tokens
            if self.fewest_share > 0:
                most = min(most, self.shape.protected + math.floor(content / self.fewest_share))
            keep.insert(0, most)
        first = keep[0] - self.shape.protected
        if first < math.ceil(self.fewest_share * (self.shape.tokens - self.shape.protected)):
            return None
        return (*keep, *([target] * (self.shape.blocks - block - 1)))

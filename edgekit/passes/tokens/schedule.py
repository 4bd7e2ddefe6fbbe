"""How many tokens stay behind each block, found on calibration data and frozen: the exported graph is static."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """Of an encoder: `tokens` that go in, `protected` of them no content, and by block the widths of the projections
    (query, value) and of the feed-forward part. `width` of the tokens."""

    tokens: int
    protected: int
    width: int
    attention: tuple[tuple[int, int], ...]
    feed_forward: tuple[int, ...]

    @property
    def blocks(self) -> int:
        return len(self.feed_forward)

    def flops(self, keep: Sequence[int] | None = None) -> float:
        """Multiplications and additions of one sample; `keep[i]` tokens leave block i, all without."""
        keep = keep if keep is not None else [self.tokens] * self.blocks
        total, count = 0.0, self.tokens
        for kept, (query, value), hidden in zip(keep, self.attention, self.feed_forward, strict=True):
            total += 2.0 * count * self.width * (2 * query + 2 * value)
            total += 2.0 * count * count * (query + value)
            total += 4.0 * kept * self.width * hidden
            count = kept
        return total

    def check(self, keep: Sequence[int]) -> None:
        """Raises UsageError for a schedule that grows, keeps no content, or has another number of blocks."""
        if len(keep) != self.blocks:
            raise UsageError(f"a schedule of {len(keep)} blocks, allowed {self.blocks}")
        before = self.tokens
        for block, kept in enumerate(keep):
            if not self.protected < kept <= before:
                raise UsageError(
                    f"block {block} keeps {kept} tokens, allowed {self.protected + 1} to {before}",
                    hint=f"{self.protected} leading tokens are no content (class, distillation) and always stay",
                )
            before = kept


def even(shape: Shape, removed: float, *, first: int = 0) -> tuple[int, ...]:
    """`removed` tokens fewer behind each block from `first` on (Bolya et al., arXiv:2210.09461, section 3.1)."""
    floor = shape.protected + 1
    return tuple(max(floor, shape.tokens - round(removed * max(0, block + 1 - first))) for block in range(shape.blocks))


def by_mass(shape: Shape, counts: np.ndarray) -> tuple[int, ...]:
    """The smallest cascade that keeps as many tokens as `counts` asks for: int [samples, blocks], protected ones
    counted, of which the mean is taken."""
    wanted = np.ceil(counts.mean(0)).astype(int)
    keep, before = [], shape.tokens
    for count in wanted:
        before = int(max(shape.protected + 1, min(before, count)))
        keep.append(before)
    return tuple(keep)


def tokens_for_mass(received: np.ndarray, mass: float, protected: int) -> np.ndarray:
    """How many tokens hold the share `mass` of the attention that content receives: `received` [samples, T] of one
    block -> int [samples], protected ones counted.

    He et al.: ZipVL, arXiv:2410.08584, section 3.2 (ratio from a threshold on attention mass).
    """
    content = -np.sort(-received[:, protected:], axis=1)
    reached = np.cumsum(content, axis=1) / np.maximum(content.sum(1, keepdims=True), 1e-12)
    short: np.ndarray = (reached < mass).sum(1).clip(max=content.shape[1] - 1)
    return short + protected + 1


def limited(shape: Shape, keep: Sequence[int], share: float, protected: int) -> tuple[int, ...]:
    """`keep` where each step leaves at least `share` of the content before it (a merging reducer needs half)."""
    found, before = [], shape.tokens
    for kept in keep:
        before = max(min(kept, before), protected + math.ceil(share * (before - protected)))
        found.append(before)
    return tuple(found)


def for_share(
    shape: Shape, share: float, schedule_of: Callable[[float], tuple[int, ...]], low: float, high: float
) -> tuple[int, ...]:
    """The schedule whose FLOPs are nearest below `share` of all, by bisection: `schedule_of` makes fewer FLOPs of
    larger numbers between `low` and `high`. Raises UsageError where even `high` leaves more."""
    whole = shape.flops()
    if shape.flops(schedule_of(high)) > share * whole:
        least = shape.flops(schedule_of(high)) / whole
        if least >= 1:
            raise UsageError(
                f"no token can be taken: there are {shape.tokens}, and {shape.protected} of them stay",
                hint="--prune-tokens none, or a longer input",
            )
        raise UsageError(
            f"{share:g} of the FLOPs cannot be reached, {least:.2f} at least",
            hint=f"--prune-tokens with a share of {math.ceil(100 * least) / 100:g} or more, or another method",
        )
    for _ in range(40):
        middle = (low + high) / 2
        if shape.flops(schedule_of(middle)) > share * whole:
            low = middle
        else:
            high = middle
    return schedule_of(high)

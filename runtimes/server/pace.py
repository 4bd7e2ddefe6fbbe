"""How long a run of n rows takes: fixed + n per_row, learned from the runs themselves.

The shape (the share that is fixed) comes from least squares that forget slowly, the scale from the last few runs: so a
machine that becomes busy is noticed at once, and a while of equal batches does not unlearn what other sizes cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

FIRST = 8  # runs that tell the shape alone, before anything is held to be the machine's doing
MEMORY = 200.0  # runs that the shape remembers
RECENT = 12.0  # runs that the scale remembers
SPREAD = 1e-3  # of the sizes, relative to their mean square: below, equal batches tell no shape
UNUSUAL = 0.25  # a run this far off, and twice as far as others of late, is the machine's doing: it tells no shape
RARELY = 3.0  # deviations; an answer that comes too late was worked for in vain
OUTLIER = 4.0  # a run this many times slower or faster than expected counts as this much


@dataclass
class Pace:
    """Not safe to use from several threads at once."""

    fixed_s: float = 0.0
    per_row_s: float = 0.0
    deviation: float = 0.25  # mean of |taken / expected - 1|
    runs: int = 0
    _scale: float = 1.0
    _sums: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)  # of 1, n, n^2, t, n t

    @property
    def is_known(self) -> bool:
        return self.runs > 0

    def seconds(self, rows: int) -> float:
        """Expected; 0 where nothing is known yet."""
        return self._scale * (self.fixed_s + rows * self.per_row_s)

    def rows_within(self, seconds: float) -> int:
        """The most rows of a run that takes no longer; at least 1, and unbounded where nothing is known."""
        if not self.is_known or self.per_row_s <= 0:
            return 1 << 30
        return max(1, int((seconds / self._scale - self.fixed_s) / self.per_row_s))

    def late_by(self, rows: int, runs: float = 1.0) -> float:
        """Seconds beyond the expected ones that `runs` such runs, one after another, rarely exceed."""
        return RARELY * self.deviation * self.seconds(rows) * math.sqrt(max(runs, 0.0))

    def like(self, rows: int, seconds: float) -> Pace:
        """One of the same shape, at the scale at which `rows` take `seconds`."""
        expected = self.seconds(rows)
        return replace(self, _scale=self._scale * seconds / expected if expected > 0 else self._scale)

    def learn(self, rows: int, seconds: float) -> None:
        expected, is_usual = self.seconds(rows), True
        if self.runs >= FIRST and expected > 0:
            ratio = min(max(seconds / expected, 1 / OUTLIER), OUTLIER)
            is_usual = abs(ratio - 1) <= max(UNUSUAL, 2 * self.deviation)
            self.deviation += (abs(ratio - 1) - self.deviation) / RECENT
            self._scale *= 1 + (ratio - 1) / RECENT
        self.runs += 1
        if is_usual:
            self._shape(rows, seconds)

    def _shape(self, rows: int, seconds: float) -> None:
        plain, keep = seconds / self._scale, 1 - 1 / MEMORY
        seen = (1.0, float(rows), float(rows * rows), plain, rows * plain)
        self._sums = tuple(keep * old + new for old, new in zip(self._sums, seen, strict=True))  # type: ignore[assignment]
        one, n, nn, t, nt = self._sums
        spread = one * nn - n * n
        if spread > SPREAD * one * nn:
            slope = min(max((one * nt - n * t) / spread, 0.0), t / n)
            self.fixed_s, self.per_row_s = max(0.0, (t - slope * n) / one), slope
        elif self.runs <= FIRST:
            self.fixed_s, self.per_row_s = 0.0, t / n

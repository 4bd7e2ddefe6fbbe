"""The layers to blame for a broken limit, and whether keeping those that still may stay float would mend it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgekit.parity import Limits, Quality
from edgekit.quantization import Fallback
from edgekit.quantizers.sensitivity import Sensitivity

# Past this a model is better served in float.
MAX_FALLBACKS = 8
# The first layer alone may deceive, noise against noise: of MiniLM-L6 with merged tokens 0, 1, 2, 4 and 8 layers in
# float leave drops of 6.9, 14.8, 7.8, 8.2 and 4.6 points.
SAYS_ENOUGH = 2
# The layers to come may bring this many times what those in float already brought, noise for noise.
BENEFIT_OF_DOUBT = 4.0


@dataclass(frozen=True)
class Suspects:
    """`rows`: those first that make the most noise for the work that they are. `before`: the quality with none of them
    in float."""

    rows: tuple[Sensitivity, ...]
    before: Quality

    @classmethod
    def ranked(cls, rows: Sequence[Sensitivity], before: Quality) -> Suspects:
        return cls(tuple(sorted(rows, key=lambda row: -_noise(row) / max(row.mflops, 0.01))), before)

    def blamed(self, kept: int, in_float: int) -> tuple[Fallback, ...]:
        """Those to keep in float next, the first `kept` being there already, `in_float` layers in all; () at the end.

        Doubled from one attempt to the next: each attempt costs as much as the first.
        """
        count = max(1, in_float)
        # Not all of them: that would be the float artifact.
        if len(self.rows) - kept <= count:
            return ()
        return tuple(
            Fallback(row.layer, "float32", f"alone it limits the output to {row.sqnr_db:.1f} dB")
            for row in self.rows[kept : kept + count]
        )

    def given_up(self, kept: int, now: Quality, limits: Limits) -> str:
        """Why the layers after the first `kept`, which gave the quality `now`, are not worth an attempt; "" else."""
        behind, ahead = self.rows[:kept], self.rows[kept:MAX_FALLBACKS]
        brought, to_come = sum(map(_noise, behind)), sum(map(_noise, ahead))
        if kept < SAYS_ENOUGH or not brought:
            return ""
        for first, last, allowed, told in _distances(self.before, now, limits):
            hoped = last - BENEFIT_OF_DOUBT * (first - last) * to_come / brought
            if last > allowed and hoped > allowed:
                return f"{kept} layers in float took the {told}, and {len(ahead)} more would not do"
        return ""


def _distances(before: Quality, now: Quality, limits: Limits) -> Iterator[tuple[float, float, float, str]]:
    """(before, now, allowed, in words) of each limited measure, as numbers to which layers contribute additively."""
    if limits.max_drop is not None:
        yield before.drop, now.drop, limits.max_drop, f"drop from {before.drop:.2f} to {now.drop:.2f} points"
    if limits.min_sqnr_db is not None:
        first, last, allowed = (_power(value) for value in (before.sqnr_db, now.sqnr_db, limits.min_sqnr_db))
        yield first, last, allowed, f"SQNR from {before.sqnr_db:.1f} to {now.sqnr_db:.1f} dB"


def _noise(row: Sensitivity) -> float:
    return _power(row.sqnr_db)


def _power(sqnr_db: float) -> float:
    """Of the noise, relative to the signal."""
    return float(10 ** (-sqnr_db / 10))

"""What each rung of a codec's ladder weighs on the wire and costs in quality: measured end to end, frames included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.bundle.manifest import Codec as CodecEntry
from edgekit.bundle.manifest import Rate
from edgekit.parity import Outputs, Quality
from edgekit.report.model import SplitRow
from edgekit.runtimes.codecs.base import Codec
from edgekit.runtimes.codecs.frame import frame_size

Arrays = list[np.ndarray]

# A rung this far past the limit serves nobody; those between stay for users who allow more at run time.
PAST_LIMIT = 10.0
FLOOR_POINTS = 10.0


@dataclass(frozen=True)
class Ladder:
    """`rates`, finest first, and the quality measured at each."""

    rates: tuple[Rate, ...]
    qualities: tuple[Quality, ...]

    def of(self, codec: CodecEntry) -> CodecEntry:
        """The manifest's entry with what was measured."""
        return codec.model_copy(update={"rates": self.rates})

    def rows(self, variant: str, codec: str) -> tuple[SplitRow, ...]:
        """For the report."""
        return tuple(
            SplitRow(variant=variant, codec=codec, rate=index, **rate.model_dump())
            for index, rate in enumerate(self.rates)
        )

    def within(self, max_drop: float) -> int | None:
        """The coarsest rung that keeps the limit, where the finest does."""
        fitting = [index for index, rate in enumerate(self.rates) if rate.drop <= max_drop]
        return fitting[-1] if fitting else None


def measure_ladder(
    features: Sequence[Arrays],
    codec: Codec,
    finish: Callable[[Sequence[Arrays]], Outputs],
    judge: Callable[[Outputs], Quality],
    max_drop: float,
) -> Ladder:
    """`features`: what the head gave, one entry a sample. `finish`: decoded features -> the model's outputs.

    The ladder ends where a rung loses ten times `max_drop` and ten points, or where the next weighs no less.
    """
    rates: list[Rate] = []
    qualities: list[Quality] = []
    for rate in range(codec.rates):
        payloads = [codec.encode(arrays, rate) for arrays in features]
        decoded = [
            codec.decode(payload, [array.shape for array in arrays], rate)
            for payload, arrays in zip(payloads, features, strict=True)
        ]
        quality = judge(finish(decoded))
        sizes = np.array(
            [
                frame_size(len(payload), [a.shape for a in arrays])
                for payload, arrays in zip(payloads, features, strict=True)
            ]
        )
        rates.append(
            Rate(
                bytes_mean=round(float(sizes.mean()), 1),
                bytes_p95=round(float(np.percentile(sizes, 95)), 1),
                drop=round(quality.drop, 4),
                agreement=None if quality.top1_agreement is None else round(quality.top1_agreement, 4),
            )
        )
        qualities.append(quality)
        if quality.drop > max(PAST_LIMIT * max_drop, FLOOR_POINTS):
            break
    return Ladder(tuple(rates), tuple(qualities))

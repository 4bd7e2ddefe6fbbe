"""Histograms with logarithmic buckets, which add up over windows, devices and versions.

Bucket b holds values in (G**(b-1), G**b] with G = 2**(1/4), so that a percentile is off by at most 9 %: the middle of
a bucket (the geometric one) stands for it. Values at or below the smallest bucket's lower end are counted in it.
Source: the exponential histogram of OpenTelemetry at scale 2 (its data model, section ExponentialHistogram).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

BUCKETS_PER_OCTAVE = 4
LEAST, MOST = -400, 400

HALF = 2.0 ** (0.5 / BUCKETS_PER_OCTAVE)  # from the middle of a bucket to either end of it, as a factor

Histogram = Mapping[int, int]


def bucket_of(value: float) -> int:
    """`value` finite; below zero counts as the least."""
    if value <= 0:
        return LEAST
    return max(LEAST, min(MOST, math.ceil(BUCKETS_PER_OCTAVE * math.log2(value) - 1e-9)))


def upper_bound(bucket: int) -> float:
    return float(2.0 ** (bucket / BUCKETS_PER_OCTAVE))


def middle(bucket: int) -> float:
    return float(2.0 ** ((bucket - 0.5) / BUCKETS_PER_OCTAVE))


def histogram_of(values: Iterable[float]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for value in values:
        bucket = bucket_of(value)
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def merge(histograms: Iterable[Histogram]) -> dict[int, int]:
    total: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def percentile(histogram: Histogram, share: float) -> float:
    """The value below which `share` (0..1) of them lie, by nearest rank; nan for an empty histogram."""
    count = sum(histogram.values())
    if count == 0:
        return math.nan
    rank, seen = max(1, math.ceil(share * count - 1e-9)), 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= rank:
            return middle(bucket)
    raise AssertionError("the ranks of a histogram end with its count")


def percentile_interval(histogram: Histogram, share: float, z: float) -> tuple[float, float]:
    """Where the percentile of all such values may be, `z` standard deviations to either side: the values at the ranks
    n p -+ z sqrt(n p (1 - p)) (Conover, Practical Nonparametric Statistics, section 3.2); (0, inf) where that many
    values cannot tell."""
    count = sum(histogram.values())
    reach = z * math.sqrt(count * share * (1 - share))
    low, high = math.floor(count * share - reach), math.ceil(count * share + reach) + 1
    return (
        0.0 if low < 1 else percentile(histogram, low / count),
        math.inf if high > count else percentile(histogram, high / count),
    )


def mean(histogram: Histogram) -> float:
    """By the buckets' middles; nan for an empty histogram."""
    count = sum(histogram.values())
    return sum(middle(bucket) * number for bucket, number in histogram.items()) / count if count else math.nan

"""Whether inputs, or how sure the model is of them, are still what they were: histograms held against the first ones
of the same device with the same bundle.

Two distances: the population stability index, sum (p - q) ln(p / q), and the Jensen-Shannon distance, the square root
of the divergence in bits (J. Lin 1991, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37).
Buckets are joined to bins of at least 4 % of the reference. Where nothing has changed, the index over (1/n + 1/m) is
distributed like chi-squared with as many degrees of freedom as there are bins but one (B. Yurdakul 2018, Statistical
Properties of Population Stability Index, section 3): that is the threshold of chance. Drift is what passes it and is
large: an index of 0.2 and more, the usual rule of credit scoring (N. Siddiqi 2006, Credit Risk Scorecards).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.fleet.telemetry.fading import Weights

LARGE = 0.2
CHANCE_Z = 3.72  # one in 10,000 by chance
LEAST_SHARE = 0.04  # of the reference in a bin
LEAST_SAMPLES = 200.0


@dataclass(frozen=True)
class Drift:
    """`index` past `limit` is drift; `limit` is the larger of what matters and what chance does. `distance`: Jensen and
    Shannon's, 0 to 1. `before` and `now`: the shares in each bin; `edges`: the buckets that end the bins."""

    index: float
    distance: float
    limit: float
    before: tuple[float, ...]
    now: tuple[float, ...]
    edges: tuple[int, ...]

    @property
    def is_drift(self) -> bool:
        return self.index >= self.limit


def compare(reference: Weights, recent: Weights, reference_n: float, recent_n: float) -> Drift | None:
    """`reference_n` and `recent_n`: how many independent samples are behind each. None where they are too few to say
    anything, or the reference is all in one bin and nothing came that is not."""
    if min(reference_n, recent_n) < LEAST_SAMPLES or not reference or not recent:
        return None
    edges = bins(reference)
    before, now = _shares(reference, edges), _shares(recent, edges)
    noise = 1 / reference_n + 1 / recent_n
    # Half a sample in each bin: an empty one is rare, not impossible.
    p = _smoothed(now, recent_n)
    q = _smoothed(before, reference_n)
    index = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    limit = max(LARGE, noise * chi_squared(len(edges), CHANCE_Z))
    return Drift(index, distance(p, q), limit, before, now, edges)


def bins(reference: Weights) -> tuple[int, ...]:
    """The buckets that end each bin; the last is open, and so is one below the first: what the reference has never
    seen falls into bins of its own."""
    total, held = sum(reference.values()), 0.0
    ordered = sorted(reference)
    edges = [ordered[0] - 1]
    for bucket in ordered:
        held += reference[bucket]
        if held >= LEAST_SHARE * total:
            edges.append(bucket)
            held = 0.0
    if held and len(edges) > 1:
        edges[-1] = ordered[-1]  # what is left over is no bin of its own
    return tuple(edges)


def _shares(weights: Weights, edges: Sequence[int]) -> tuple[float, ...]:
    counts = [0.0] * (len(edges) + 1)
    for bucket, weight in weights.items():
        counts[next((at for at, edge in enumerate(edges) if bucket <= edge), len(edges))] += weight
    total = sum(counts)
    return tuple(count / total for count in counts)


def _smoothed(shares: Sequence[float], samples: float) -> tuple[float, ...]:
    whole = samples + 0.5 * len(shares)
    return tuple((share * samples + 0.5) / whole for share in shares)


def distance(p: Sequence[float], q: Sequence[float]) -> float:
    """Jensen and Shannon's, of two distributions over the same bins: 0 for equal ones, 1 for ones without overlap."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total += sum(0.5 * x * math.log2(x / m) for x in (a, b) if x > 0)
    return math.sqrt(max(0.0, min(1.0, total)))


def chi_squared(freedom: int, z: float) -> float:
    """The quantile that a standard normal value reaches at `z` (Wilson and Hilferty 1931, PNAS 17)."""
    if freedom < 1:
        return 0.0
    part = 2 / (9 * freedom)
    return float(freedom * (1 - part + z * math.sqrt(part)) ** 3)

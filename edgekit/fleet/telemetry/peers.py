"""A faulty member found by comparing it with its peers: devices that do the same work should look alike, so that one
which does not is worth a look, without any limit that somebody would have to set.

The idea of homogeneity is C4's (J. Dong et al. 2024, Boosting Large-scale Parallel Training Efficiency with C4, section
4). The score is how many robust standard deviations a device lies on the bad side of its peers' median: 1.4826 MAD
(F. R. Hampel 1974, The influence curve, JASA 69), widened by what chance makes of the device's own few samples. A
device is a suspect where the score passes `SUSPECT` and it is off by more than `Trait.least`, which is what matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from edgekit.fleet.telemetry.fading import Faded, weighted_percentile
from edgekit.fleet.telemetry.histogram import BUCKETS_PER_OCTAVE

SUSPECT = 5.0
LEAST_PEERS = 5  # others; of fewer the median and the spread say nothing
LEAST_SAMPLES = 50.0
MAD_TO_SIGMA = 1.4826
BUCKET = math.log(2.0) / BUCKETS_PER_OCTAVE  # what a histogram cannot tell apart, in logarithms

Scale = Literal["log", "share", "degrees"]


@dataclass(frozen=True)
class Trait:
    """`bad`: +1 where more is worse, -1 where less is. `least`: what a difference must be to matter, on `scale` (as a
    factor where that is logarithmic). `floor`: peers that are more alike than this count as spread by it."""

    name: str
    unit: str
    scale: Scale
    bad: int
    least: float
    floor: float
    value: Callable[[Faded], float]
    samples: Callable[[Faded], float]
    of_work: bool = True

    def put(self, value: float) -> float:
        """On the scale on which values are compared."""
        return math.log(max(value, 1e-9)) if self.scale == "log" else value

    @property
    def matters(self) -> float:
        return math.log(self.least) if self.scale == "log" else self.least


def _percentile(share: float) -> Callable[[Faded], float]:
    return lambda seen: weighted_percentile(seen.latency, share)


def _share(count: Callable[[Faded], float], of: Callable[[Faded], float]) -> Callable[[Faded], float]:
    return lambda seen: count(seen) / of(seen) if of(seen) > 0 else math.nan


def _requests(seen: Faded) -> float:
    return seen.requests


def _latencies(seen: Faded) -> float:
    return sum(seen.latency.values())


def _links(seen: Faded) -> float:
    return LEAST_SAMPLES * seen.link[0] if seen.link[0] >= 3 else 0.0  # windows, which are medians themselves


def _heats(seen: Faded) -> float:
    return LEAST_SAMPLES * seen.heat[0] if seen.heat[0] >= 3 else 0.0


TRAITS = (
    Trait("p50", "ms", "log", 1, 1.25, BUCKET / 2, _percentile(0.5), _latencies),
    Trait("p95", "ms", "log", 1, 1.4, BUCKET / 2, _percentile(0.95), _latencies),
    Trait("errors", "%", "share", 1, 0.01, 0.001, _share(lambda seen: seen.errors, _requests), _requests),
    Trait("degraded", "%", "share", 1, 0.05, 0.005, _share(lambda seen: seen.degraded, _requests), _requests),
    Trait(
        "agreement", "%", "share", -1, 0.03, 0.003,
        _share(lambda seen: seen.agreed, lambda seen: seen.compared), lambda seen: seen.compared,
    ),
    Trait("temperature", "C", "degrees", 1, 8.0, 1.0, lambda seen: seen.temperature_c, _heats),
    Trait("rtt", "ms", "log", 1, 2.0, 0.1, lambda seen: seen.rtt_ms, _links, of_work=False),
    Trait("bandwidth", "Mbit/s", "log", -1, 2.0, 0.1, lambda seen: seen.bandwidth_mbps, _links, of_work=False),
    Trait("loss", "%", "share", 1, 0.02, 0.002, lambda seen: seen.loss, _links, of_work=False),
)  # fmt: skip
TRAIT = {trait.name: trait for trait in TRAITS}


@dataclass(frozen=True)
class Suspect:
    """`value` of the device against the peers' `usual` (their median); `spread`: a robust standard deviation of theirs
    (a factor, where the trait is compared in logarithms). `peers`: how many."""

    device: str
    trait: str
    value: float
    usual: float
    spread: float
    score: float
    peers: int
    samples: float


def compare(members: Mapping[str, Faded]) -> list[Suspect]:
    """Of devices that could be peers: those of one bundle, tier and kind of machine. What comes of the work itself is
    compared among those that ran most by the same plan; the worst first."""
    found: list[Suspect] = []
    by_plan: dict[str, dict[str, Faded]] = {}
    for device, seen in members.items():
        by_plan.setdefault(seen.plan, {})[device] = seen
    for trait in TRAITS:
        for group in by_plan.values() if trait.of_work else (members,):
            found += _suspects(trait, group)
    return sorted(found, key=lambda suspect: (-suspect.score, suspect.device, suspect.trait))


def _suspects(trait: Trait, members: Mapping[str, Faded]) -> list[Suspect]:
    values = {
        device: value
        for device, seen in members.items()
        if trait.samples(seen) >= LEAST_SAMPLES and not math.isnan(value := trait.value(seen))
    }
    if len(values) <= LEAST_PEERS:
        return []
    placed = {device: trait.put(value) for device, value in values.items()}
    middle = median(placed.values())
    spread = max(MAD_TO_SIGMA * median(abs(value - middle) for value in placed.values()), trait.floor)
    usual = math.exp(middle) if trait.scale == "log" else middle
    found = []
    for device, value in placed.items():
        off = trait.bad * (value - middle)
        if off < trait.matters:
            continue
        samples = trait.samples(members[device])
        score = off / math.hypot(spread, _chance(trait, members[device], usual, samples))
        if score >= SUSPECT:
            shown = math.exp(spread) if trait.scale == "log" else spread
            found.append(Suspect(device, trait.name, values[device], usual, shown, score, len(values) - 1, samples))
    return found


def _chance(trait: Trait, seen: Faded, usual: float, samples: float) -> float:
    """One standard deviation of what a device like its peers shows on so many samples."""
    if not trait.of_work or trait.scale == "degrees":
        return 0.0
    if trait.scale == "share":
        rare = max(min(usual, 1 - usual), 1 / samples)  # none seen among the peers does not mean never
        return math.sqrt(rare * (1 - rare) / samples)
    share = {"p50": 0.5, "p95": 0.95}[trait.name]
    reach = math.sqrt(share * (1 - share) / samples)
    low, high = (weighted_percentile(seen.latency, min(max(share + sign * reach, 0.0), 1.0)) for sign in (-1, 1))
    return 0.5 * math.log(high / low)

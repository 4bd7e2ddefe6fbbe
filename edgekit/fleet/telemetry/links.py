"""The link of a device, and how fast it computes, from its recent windows: medians and quartiles over numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from edgekit.planning.link import Link
from edgekit.planning.plan import Way

LEAST_WINDOWS = 3  # with a link, or with answers
MOST_LOSS = 0.9
SCALES = (0.2, 20.0)  # what is measured beyond is no property of the machine
LEAST_OWN = 0.3  # of a way's time that the device computes, or its share cannot be told from the network's


@dataclass(frozen=True)
class LinkSpan:
    """`usual`: the medians; `slow`: the quartile of the worse side of each."""

    usual: Link
    slow: Link
    windows: int
    since: float
    until: float


@dataclass(frozen=True)
class Sighting:
    """Of a window that began `at`: the link in Mbit/s, ms and share, None where nobody used it; the median latency of
    the variant that answered most, nan without answers."""

    at: float
    link: tuple[float, float, float] | None
    variant: str
    median_ms: float
    answered: int


def link_span(sightings: Sequence[Sighting]) -> LinkSpan | None:
    """None where too few windows tell of the link."""
    seen = [(one.at, one.link) for one in sightings if one.link is not None]
    if len(seen) < LEAST_WINDOWS:
        return None
    bandwidths, rtts, losses = ([link[part] for _, link in seen] for part in range(3))
    loss = min(median(losses), MOST_LOSS)
    usual = Link(median(bandwidths), median(rtts), loss)
    slow_loss = min(quantile(losses, 0.75), MOST_LOSS)
    slow = Link(quantile(bandwidths, 0.25), quantile(rtts, 0.75), slow_loss)
    return LinkSpan(usual, slow, len(seen), min(at for at, _ in seen), max(at for at, _ in seen))


def compute_scale(
    sightings: Sequence[Sighting], ways: Sequence[Way], network_ms: Callable[[Way], float]
) -> tuple[float, int, float]:
    """(how many times longer the device computes than predicted, from how many answers, their median latency in ms).

    What the network and the servers take by prediction is taken off first; windows of ways that hardly compute on the
    device say nothing. (1, 0, nan) where nothing is said.
    """
    known = {way.variant: way for way in ways}
    ratios, answers, latencies = [], 0, []
    for one in sightings:
        way = known.get(one.variant)
        if way is None or math.isnan(one.median_ms) or not one.answered:
            continue
        latencies.append(one.median_ms)
        own = way.exit_ms + sum(stage.share * stage.latency_ms for stage in way.stages if stage.tier == "device")
        rest = network_ms(way)
        if own > 0 and own >= LEAST_OWN * (own + rest):
            ratios.append(max(one.median_ms - rest, 0.0) / own)
            answers += one.answered
    if len(ratios) < LEAST_WINDOWS:
        return 1.0, 0, median(latencies) if latencies else math.nan
    return min(max(median(ratios), SCALES[0]), SCALES[1]), answers, median(latencies)


def quantile(values: Sequence[float], share: float) -> float:
    """By nearest rank."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked) - 1e-9) - 1)]

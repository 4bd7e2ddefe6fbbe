"""What was seen of one bundle in a span of time, as sums: applications write them into the spool, the agent adds them
up and makes a window of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.fleet.telemetry.histogram import bucket_of, merge

MOST_BUCKETS = 200  # of a window's histograms
MOST_LINKS = 64
MOST_PLANS = 16


@dataclass
class Tally:
    """`plans`: variant -> answers; `links`: (Mbit/s, round trip in ms, loss) as they were measured, the newest."""

    answered: int = 0
    errors: int = 0
    degraded: int = 0
    late: int = 0
    compared: int = 0
    agreed: int = 0
    latency: dict[int, int] = field(default_factory=dict)
    confidence: dict[int, int] = field(default_factory=dict)
    inputs: dict[int, int] = field(default_factory=dict)
    plans: dict[str, int] = field(default_factory=dict)
    links: list[tuple[float, float, float]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.answered or self.errors or self.compared or self.links)

    def count(self, histogram: dict[int, int], value: float) -> None:
        if math.isfinite(value):
            bucket = bucket_of(value)
            histogram[bucket] = histogram.get(bucket, 0) + 1

    def plan(self, variant: str) -> None:
        if variant in self.plans or len(self.plans) < MOST_PLANS:
            self.plans[variant] = self.plans.get(variant, 0) + 1

    def link(self, bandwidth_mbps: float, rtt_ms: float, loss: float) -> None:
        if bandwidth_mbps > 0 and rtt_ms >= 0 and 0 <= loss <= 1 and math.isfinite(bandwidth_mbps + rtt_ms):
            self.links = [*self.links, (bandwidth_mbps, rtt_ms, loss)][-MOST_LINKS:]

    def add(self, other: Tally) -> None:
        for name in ("answered", "errors", "degraded", "late", "compared", "agreed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("latency", "confidence", "inputs"):
            setattr(self, name, merge((getattr(self, name), getattr(other, name))))
        for variant, count in other.plans.items():
            if variant in self.plans or len(self.plans) < MOST_PLANS:
                self.plans[variant] = self.plans.get(variant, 0) + count
        self.links = [*self.links, *other.links][-MOST_LINKS:]

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value}

    def to_window(self) -> dict[str, Any]:
        """The fields of a window that are sums; the variant that answered most is its plan."""
        found = self.to_json()
        links, plans = found.pop("links", []), found.pop("plans", {})
        for name in ("latency", "confidence", "inputs"):
            if name in found:
                found[name] = _bounded(found[name])
        if plans:
            found["plan"] = max(plans, key=lambda variant: (plans[variant], variant))[:200]
        if links:
            bandwidth_mbps, rtt_ms, loss = (statistics.median(column) for column in zip(*links, strict=True))
            found["link"] = {"bandwidth_mbps": bandwidth_mbps, "rtt_ms": rtt_ms, "loss": loss}
        return found


def _bounded(histogram: Mapping[int, int]) -> dict[int, int]:
    """Not more buckets than a window takes: the rarest go into the next one above."""
    kept = dict(histogram)
    while len(kept) > MOST_BUCKETS:
        rarest = min(kept, key=lambda bucket: (kept[bucket], bucket))
        above = min((bucket for bucket in kept if bucket > rarest), default=max(set(kept) - {rarest}))
        kept[above] += kept.pop(rarest)
    return kept

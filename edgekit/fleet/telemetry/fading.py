"""What a device saw lately: windows added up so that older ones count less and less.

A window that is one half-life older than the newest counts half as much. So each window is read once, and a device
takes a few kB however long it runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.telemetry.histogram import middle

LEAST_WEIGHT = 1e-3  # of a bucket, below which it is forgotten

Weights = Mapping[int, float]


@dataclass(frozen=True)
class Faded:
    """`at`: the start of the newest window. `seconds`: of all windows; `heard_s`: of answers, at most one a second,
    because pictures of the same second are no independent samples. `heat` and `link`: (weight, sums) of degrees, and
    of the logarithms of bandwidth and round trip, and of loss."""

    at: float = 0.0
    seconds: float = 0.0
    heard_s: float = 0.0
    answered: float = 0.0
    errors: float = 0.0
    degraded: float = 0.0
    compared: float = 0.0
    agreed: float = 0.0
    latency: Weights = field(default_factory=dict)
    confidence: Weights = field(default_factory=dict)
    inputs: Weights = field(default_factory=dict)
    plans: Mapping[str, float] = field(default_factory=dict)
    heat: tuple[float, ...] = (0.0, 0.0)
    link: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)

    def add(self, windows: Iterable[Window], half_life_s: float = math.inf) -> Faded:
        """A window that comes late counts as what it is: old."""
        found = self
        for window in windows:
            found = found._with(window, half_life_s)
        return found

    def _with(self, window: Window, half_life_s: float) -> Faded:
        later_s = window.started_at - self.at if self.seconds else 0.0
        kept = 0.5 ** (max(0.0, later_s) / half_life_s)
        new = 0.5 ** (max(0.0, -later_s) / half_life_s)
        health, link = window.health.temperature_c, window.link
        heat = (0.0, 0.0) if health is None else (1.0, health)
        linked = (0.0, 0.0, 0.0, 0.0)
        if link is not None:
            linked = (1.0, math.log(link.bandwidth_mbps), math.log(max(link.rtt_ms, 0.01)), link.loss)
        return Faded(
            at=max(self.at, window.started_at),
            seconds=kept * self.seconds + new * window.seconds,
            heard_s=kept * self.heard_s + new * min(window.seconds, window.answered),
            answered=kept * self.answered + new * window.answered,
            errors=kept * self.errors + new * window.errors,
            degraded=kept * self.degraded + new * window.degraded,
            compared=kept * self.compared + new * window.compared,
            agreed=kept * self.agreed + new * window.agreed,
            latency=_sum(self.latency, kept, window.latency, new),
            confidence=_sum(self.confidence, kept, window.confidence, new),
            inputs=_sum(self.inputs, kept, window.inputs, new),
            plans=_sum(self.plans, kept, {window.plan: window.seconds}, new),
            heat=tuple(kept * a + new * b for a, b in zip(self.heat, heat, strict=True)),
            link=tuple(kept * a + new * b for a, b in zip(self.link, linked, strict=True)),
        )

    @property
    def requests(self) -> float:
        return self.answered + self.errors

    @property
    def plan(self) -> str:
        """The one that was chosen for most of the time; "" where none was."""
        return max(self.plans, key=lambda name: self.plans[name], default="")

    @property
    def temperature_c(self) -> float:
        return self.heat[1] / self.heat[0] if self.heat[0] else math.nan

    @property
    def bandwidth_mbps(self) -> float:
        return math.exp(self.link[1] / self.link[0]) if self.link[0] else math.nan

    @property
    def rtt_ms(self) -> float:
        return math.exp(self.link[2] / self.link[0]) if self.link[0] else math.nan

    @property
    def loss(self) -> float:
        return self.link[3] / self.link[0] if self.link[0] else math.nan

    def stored(self) -> dict[str, Any]:
        """As JSON has it; `read` is the way back."""
        return asdict(self)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Faded:
        read: dict[str, Any] = {
            name: {int(bucket): weight for bucket, weight in stored[name].items()}
            for name in ("latency", "confidence", "inputs")
        }
        read |= {name: tuple(stored[name]) for name in ("heat", "link")}
        return cls(**{**stored, **read})


def _sum(old: Mapping[Any, float], kept: float, fresh: Mapping[Any, float], new: float) -> dict[Any, float]:
    total = {key: kept * weight for key, weight in old.items()} if kept != 1.0 else dict(old)
    for key, count in fresh.items():
        total[key] = total.get(key, 0.0) + new * count
    return {key: weight for key, weight in total.items() if weight >= LEAST_WEIGHT}


def weighted_percentile(weights: Weights, share: float) -> float:
    """The bucket's middle below which `share` of the weight lies; nan without any."""
    total, seen = sum(weights.values()), 0.0
    for bucket in sorted(weights):
        seen += weights[bucket]
        if seen >= share * total - 1e-9:
            return middle(bucket)
    return math.nan

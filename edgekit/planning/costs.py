"""Predicted costs corrected by what was measured on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgekit.errors import UsageError
from edgekit.planning.plan import Way

MEMORY = 0.8
# One measurement counts for at most this factor: a stall of the machine is no property of the part.
MOST = 4.0


@dataclass
class MeasuredCosts:
    """The ratio of measured to predicted for each part, and each codec's `encode:NAME` and `decode:NAME`; averaged in
    logarithms, so that twice as slow and twice as fast weigh the same. Parts nobody measured keep their prediction,
    scaled like the measured ones of their tier: what is wrong about one is mostly the machine.
    """

    ways: tuple[Way, ...]
    _predicted: dict[str, float] = field(default_factory=dict, init=False)
    _tier_of: dict[str, str] = field(default_factory=dict, init=False)
    _log_ratio: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for way in self.ways:
            for stage in way.stages:
                self._add(stage.part, stage.tier, stage.latency_ms)
            for crossing in way.crossings:
                self._add(f"encode:{crossing.codec}", crossing.hop[0], crossing.encode_ms)
                self._add(f"decode:{crossing.codec}", crossing.hop[1], crossing.decode_ms)

    def observe(self, name: str, measured_ms: float) -> None:
        """Raises UsageError for a name that no way has, or a time that is not above 0."""
        if name not in self._predicted or not 0 < measured_ms < math.inf:
            raise UsageError(f"{name!r} took {measured_ms} ms, allowed above 0 for one of {sorted(self._predicted)}")
        if not self._predicted[name] > 0:
            return
        seen = math.log(measured_ms / self._predicted[name])
        if name not in self._log_ratio:
            self._log_ratio[name] = seen
            return
        last = self._log_ratio[name]
        off = max(-math.log(MOST), min(math.log(MOST), seen - last))
        self._log_ratio[name] = last + (1 - MEMORY) * off

    def ratio(self, name: str) -> float:
        """1 where nothing is known."""
        if name in self._log_ratio:
            return math.exp(self._log_ratio[name])
        kin = [value for other, value in self._log_ratio.items() if self._tier_of[other] == self._tier_of.get(name)]
        return math.exp(sum(kin) / len(kin)) if kin else 1.0

    def corrected(self) -> tuple[Way, ...]:
        return tuple(self._corrected(way) for way in self.ways) if self._log_ratio else self.ways

    def _corrected(self, way: Way) -> Way:
        stages = tuple(
            replace(s, latency_ms=s.latency_ms * ratio, energy_mj=s.energy_mj * ratio)
            for s, ratio in ((stage, self.ratio(stage.part)) for stage in way.stages)
        )
        crossings = tuple(
            replace(
                crossing,
                encode_ms=crossing.encode_ms * self.ratio(f"encode:{crossing.codec}"),
                decode_ms=crossing.decode_ms * self.ratio(f"decode:{crossing.codec}"),
            )
            for crossing in way.crossings
        )
        return replace(way, stages=stages, crossings=crossings)

    def _add(self, name: str, tier: str, predicted_ms: float) -> None:
        self._predicted.setdefault(name, predicted_ms)
        self._tier_of.setdefault(name, tier)


def names_of(ways: Sequence[Way]) -> list[str]:
    """What `MeasuredCosts.observe` takes for these ways, sorted."""
    return sorted(MeasuredCosts(tuple(ways))._predicted)

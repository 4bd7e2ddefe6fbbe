"""Windows added up: what a device, or all devices of a step, saw in a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.telemetry.histogram import merge, percentile


@dataclass(frozen=True)
class Seen:
    """Shares are of requests that ended (answered or not); nan where there were none. `temperatures`: of each window
    that has one, in degrees Celsius. `checked` and `right`: golden inputs, which slots tell, not windows."""

    windows: int = 0
    answered: int = 0
    errors: int = 0
    degraded: int = 0
    late: int = 0
    compared: int = 0
    agreed: int = 0
    energy_mj: float = 0.0
    metered: int = 0
    latency: dict[int, int] = field(default_factory=dict)
    confidence: dict[int, int] = field(default_factory=dict)
    inputs: dict[int, int] = field(default_factory=dict)
    temperatures: tuple[float, ...] = ()
    checked: int = 0
    right: int = 0

    @classmethod
    def of(cls, windows: Iterable[Window]) -> Seen:
        found = list(windows)
        metered = [window for window in found if window.energy_mj is not None]
        return cls(
            len(found),
            sum(window.answered for window in found),
            sum(window.errors for window in found),
            sum(window.degraded for window in found),
            sum(window.late for window in found),
            sum(window.compared for window in found),
            sum(window.agreed for window in found),
            sum(window.energy_mj or 0.0 for window in metered),
            sum(window.answered for window in metered),
            merge(window.latency for window in found),
            merge(window.confidence for window in found),
            merge(window.inputs for window in found),
            tuple(one for window in found if (one := window.health.temperature_c) is not None),
        )

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            self.windows + other.windows,
            self.answered + other.answered,
            self.errors + other.errors,
            self.degraded + other.degraded,
            self.late + other.late,
            self.compared + other.compared,
            self.agreed + other.agreed,
            self.energy_mj + other.energy_mj,
            self.metered + other.metered,
            merge((self.latency, other.latency)),
            merge((self.confidence, other.confidence)),
            merge((self.inputs, other.inputs)),
            self.temperatures + other.temperatures,
            self.checked + other.checked,
            self.right + other.right,
        )

    @property
    def requests(self) -> int:
        return self.answered + self.errors

    def share(self, count: int) -> float:
        return count / self.requests if self.requests else math.nan

    @property
    def agreement(self) -> float:
        return self.agreed / self.compared if self.compared else math.nan

    @property
    def energy_per_answer_mj(self) -> float:
        """Of the windows in which energy was read."""
        return self.energy_mj / self.metered if self.metered else math.nan

    def latency_ms(self, share: float) -> float:
        return percentile(self.latency, share)

"""What is remembered of a device with a bundle: what it saw at first, and lately."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.fleet.protocol.windows import Window
from edgekit.fleet.telemetry.fading import Faded

NOW_HALF_LIFE_S = 900.0  # for peers
RECENT_HALF_LIFE_S = 6 * 3600.0  # for drift: hours, as the hours of a day differ
REFERENCE_S = 24 * 3600.0  # a day and night, and at least
REFERENCE_SAMPLES = 2_000.0


@dataclass(frozen=True)
class Memory:
    """`began_at`: when its first window did."""

    reference: Faded = Faded()
    recent: Faded = Faded()
    now: Faded = Faded()
    began_at: float = math.nan

    def add(self, windows: Sequence[Window]) -> Memory:
        began_at = windows[0].started_at if math.isnan(self.began_at) else self.began_at
        reference = self.reference
        filling = [window for window in windows if not _is_full(reference, began_at, window.started_at)]
        return Memory(
            reference.add(filling),
            self.recent.add(windows[len(filling) :], RECENT_HALF_LIFE_S),
            self.now.add(windows, NOW_HALF_LIFE_S),
            began_at,
        )

    def stored(self) -> dict[str, object]:
        parts = {name: getattr(self, name).stored() for name in ("reference", "recent", "now")}
        return {**parts, "began_at": self.began_at}

    @classmethod
    def read(cls, stored: Mapping[str, object]) -> Memory:
        parts = {name: Faded.read(stored[name]) for name in ("reference", "recent", "now")}  # type: ignore[arg-type]
        return cls(**parts, began_at=float(str(stored["began_at"])))


def _is_full(reference: Faded, began_at: float, at: float) -> bool:
    return at - began_at >= REFERENCE_S and reference.heard_s >= REFERENCE_SAMPLES

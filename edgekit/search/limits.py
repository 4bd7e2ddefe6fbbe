"""What a user allows: `latency=8ms,size=10MB,energy=40mJ,drop=0.5`, and how long the search may take: `20min`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from edgekit.errors import UnknownNameError, UsageError

_NUMBER = re.compile(r"(?P<number>[0-9]*\.?[0-9]+)\s*(?P<unit>[a-z%]*)", re.IGNORECASE)
_TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3, "": 1.0}
_SIZES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_ENERGIES = {"uj": 1e-3, "mj": 1.0, "j": 1e3, "": 1.0}
_POINTS = {"": 1.0, "%": 1.0, "points": 1.0}
_SPANS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
# As asked -> (field of Limits, units)
NAMES: dict[str, tuple[str, Mapping[str, float]]] = {
    "latency": ("latency_ms", _TIMES),
    "size": ("size_bytes", _SIZES),
    "memory": ("memory_bytes", _SIZES),
    "bytes": ("bytes_sent", _SIZES),
    "energy": ("energy_mj", _ENERGIES),
    "drop": ("drop", _POINTS),
    "accuracy": ("drop", _POINTS),
}
USUAL_BUDGET = "10min"
EXAMPLES = "latency=8ms, size=10MB, memory=64MB, bytes=2kB, energy=40mJ, drop=0.5"


@dataclass(frozen=True)
class SearchLimits:
    """Of one inference on the device. `size_bytes` of the artifact; `memory_bytes`: artifact and activations at their
    peak; `bytes_sent` over the link; `drop` in points. None: no such limit."""

    latency_ms: float | None = None
    size_bytes: float | None = None
    memory_bytes: float | None = None
    bytes_sent: float | None = None
    energy_mj: float | None = None
    drop: float | None = None

    @property
    def by_size(self) -> bool:
        """Whether smaller weights help to meet them."""
        return self.size_bytes is not None or self.memory_bytes is not None

    @classmethod
    def parse(cls, text: str | None, max_drop: float) -> SearchLimits:
        """`max_drop` stands where `text` says nothing of the drop, and the smaller of the two where it does.

        Raises UnknownNameError for an unknown limit, UsageError for one without a number, in another unit, or twice.
        """
        found: dict[str, float] = {}
        for entry in (part.strip() for part in (text or "").split(",")):
            if not entry:
                continue
            name, _, value = entry.partition("=")
            name = name.strip().lower()
            if name not in NAMES:
                raise UnknownNameError("limit", name, NAMES)
            field, units = NAMES[name]
            match = _NUMBER.fullmatch(value.strip())
            least = 0.0 if field == "drop" else 1e-300
            if match is None or match["unit"].lower() not in units or float(match["number"]) < least:
                raise UsageError(
                    f"the limit {entry!r} is no quantity above zero in {', '.join(unit for unit in units if unit)}",
                    hint=f"limits look like {EXAMPLES}",
                )
            if field in found:
                raise UsageError(f"two limits on {name}: {entry!r} is the second", hint="give each limit once")
            found[field] = float(match["number"]) * units[match["unit"].lower()]
        found["drop"] = min(max_drop, found.get("drop", math.inf))
        return cls(**found)

    def broken(self, figures: Mapping[str, float | None]) -> list[str]:
        """The names of the limits that `figures` (by field name; what is missing or None is not judged) break."""
        return [
            field.name
            for field in fields(self)
            if (limit := getattr(self, field.name)) is not None
            and (value := figures.get(field.name)) is not None
            and value > limit * (1 + 1e-9)
        ]

    def fullness(self, figures: Mapping[str, float | None]) -> float:
        """The largest share that `figures` take of a limit; 0 without limits."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        shares = [
            value / max(limit, 0.1 if name == "drop" else 1e-12)
            for name, limit in limits.items()
            if limit is not None and (value := figures.get(name)) is not None
        ]
        return max(shares, default=0.0)

    def excess(self, figures: Mapping[str, float | None]) -> float:
        """How far `figures` lie beyond the limits: the sum of what is too much, in parts of each limit."""
        total = 0.0
        for name in self.broken(figures):
            limit, value = getattr(self, name), figures[name]
            assert value is not None
            total += (value - limit) / max(limit, 0.1 if name == "drop" else 1e-12)
        return total


def parse_budget(text: str) -> float:
    """`90s`, `20min`, `1h` -> seconds. Raises UsageError."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match["unit"].lower() not in _SPANS or float(match["number"]) <= 0:
        raise UsageError(f"the budget {text!r} is no time above zero", hint="give it like 90s, 20min or 1h")
    return float(match["number"]) * _SPANS[match["unit"].lower()]

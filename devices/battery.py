"""The charge of this machine's battery, as Linux tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import UsageError

POWER_SUPPLY = Path("/sys/class/power_supply")


@dataclass(frozen=True)
class Battery:
    """`share` of 1. `is_charging`: mains are there, nothing needs to be saved. Raises UsageError for a share outside
    0 to 1."""

    share: float
    is_charging: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"a battery at {self.share:g} of its charge, allowed 0 to 1", hint="0.15 is 15 %")


def read_battery(folder: Path = POWER_SUPPLY) -> Battery | None:
    """The emptiest battery that the kernel knows; None where there is none, or none that can be read.

    A battery of a mouse or headset (scope Device) is not this machine's.
    """
    found = []
    for supply in sorted(folder.glob("*")) if folder.is_dir() else []:
        try:
            if _text(supply / "type") != "Battery" or _scope(supply) == "Device":
                continue
            capacity = int(_text(supply / "capacity"))
            status = _text(supply / "status")
        except (OSError, ValueError):
            continue
        found.append(Battery(min(100, max(0, capacity)) / 100, status in ("Charging", "Full")))
    return min(found, key=lambda battery: battery.share, default=None)


@dataclass
class BatterySaver:
    """Whether to save: from below `low` until `high` is reached or the battery is charged."""

    low: float = 0.2
    high: float = 0.3
    is_saving: bool = False

    def look(self, battery: Battery | None) -> bool:
        if battery is None or battery.is_charging or battery.share >= self.high:
            self.is_saving = False
        elif battery.share < self.low:
            self.is_saving = True
        return self.is_saving


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()


def _scope(supply: Path) -> str:
    scope = supply / "scope"
    return _text(scope) if scope.exists() else "System"

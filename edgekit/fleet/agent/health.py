"""How the device is: what the kernel tells of it, nothing where it tells nothing."""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.fleet.protocol.windows import Health

THERMAL = Path("/sys/class/thermal")
HWMON = Path("/sys/class/hwmon")
MEMORY = Path("/proc/meminfo")

# Names of the rail that feeds the whole board, first of those that are there: Orin and Xavier, Nano, older.
WHOLE_BOARD = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "SYS5V")


def read_health(home: Path, thermal: Path = THERMAL, hwmon: Path = HWMON, memory: Path = MEMORY) -> Health:
    """`home`: whose file system's room is told."""
    return Health(
        temperature_c=temperature_c(thermal),
        power_w=power_w(hwmon),
        memory_bytes=memory_used(memory),
        disk_free_bytes=disk_free(home),
    )


def temperature_c(thermal: Path = THERMAL) -> float | None:
    """Of the hottest zone. Zones that are off say -256 or 0 degrees, and count as none."""
    read = [_number(zone / "temp") for zone in _sorted(thermal, "thermal_zone*")]
    real = [value / 1e3 for value in read if value is not None and 0 < value < 200_000]
    return max(real, default=None)


def power_w(hwmon: Path = HWMON) -> float | None:
    """Of the whole board, from an INA3221 (Jetson) or INA2xx; None where no sensor sits there.

    Channels of one chip are rails beside each other, and the one that feeds the board holds the others: it alone
    counts where it is named; else the largest does.
    """
    rails: dict[str, float] = {}
    for chip in _sorted(hwmon, "hwmon*"):
        if (_text(chip / "name") or "").startswith("ina"):
            rails |= _rails(chip)
    named = [rails[name] for name in WHOLE_BOARD if name in rails]
    return named[0] if named else max(rails.values(), default=None)


def _rails(chip: Path) -> dict[str, float]:
    """Rail -> W. The kernel tells uW, or mV and mA."""
    found = {}
    for channel in range(1, 5):
        label = _text(chip / f"in{channel}_label") or f"{chip.name}.{channel}"
        watts, volts, amperes = (_number(chip / f"{what}{channel}_input") for what in ("power", "in", "curr"))
        if watts is not None:
            found[label] = watts / 1e6
        elif volts is not None and amperes is not None:
            found[label] = volts * amperes / 1e6
    return {label: max(0.0, watts) for label, watts in found.items()}


def memory_used(memory: Path = MEMORY) -> int | None:
    """Of all processes, without what the kernel would give back."""
    lines = (_text(memory) or "").splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    try:
        return 1024 * (int(fields["MemTotal"]) - int(fields["MemAvailable"]))
    except (LookupError, ValueError):
        return None


def disk_free(home: Path) -> int | None:
    try:
        about = os.statvfs(home)
    except OSError:
        return None
    return about.f_bavail * about.f_frsize


def _sorted(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else []


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    """None for what cannot be read: some sensors answer with an error while they sleep."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None

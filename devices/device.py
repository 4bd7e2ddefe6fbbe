"""A Device: what a profile (one TOML file) says of a machine. Floors 1 and 2 only; the run side reads it too."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgekit.errors import DeviceError, UnknownNameError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALIASES = {"raspberry-pi": "raspberry-pi-5", "jetson": "jetson-orin-nano-super", "android": "pixel-8"}


@dataclass(frozen=True)
class Unit:
    """A processor: dense peaks in GFLOP/s (GOP/s for int8) by precision; sparse ones apart, None where unknown.

    `dispatch_us`: what one operator's launch costs. `bandwidth_gbps`: sustained copy rate over all cores, in GB/s;
    `single_core_bandwidth_gbps` what one core alone sustains, None where unknown (GPUs have no such thing).
    """

    name: str
    cores: int
    clock_ghz: float
    isa: tuple[str, ...]
    bandwidth_gbps: float
    dispatch_us: float
    peak_gflops: dict[str, float]
    sparse_gflops: dict[str, float]
    single_core_bandwidth_gbps: float | None = None


@dataclass(frozen=True)
class Device:
    """`formats`: what the device can run, best first: format -> (unit, precisions that its kernels have).

    `memory_bytes` is what the device has; `nominal_bandwidth_gbps` the memory's data sheet. `power_w` holds idle and
    load, in watts, in `power_mode`. `efficiency` is the fraction of the roofline that kernels reach, by
    "unit/kind/precision" (a probe measures it; a profile without it uses this host's calibration, marked so).
    `sources`: field -> where the figure comes from. `estimated`: fields without a source of their own.
    """

    name: str
    title: str
    arch: str
    memory_bytes: int
    nominal_bandwidth_gbps: float
    units: tuple[Unit, ...]
    formats: dict[str, tuple[str, tuple[str, ...]]]
    power_mode: str
    power_w: dict[str, float]
    efficiency: dict[str, float]
    sources: dict[str, str]
    estimated: tuple[str, ...]

    def unit(self, name: str) -> Unit:
        """Raises DeviceError for a name that is none of the units."""
        for unit in self.units:
            if unit.name == name:
                return unit
        raise DeviceError(f"{self.name} has no unit {name!r}", hint=f"it has: {', '.join(u.name for u in self.units)}")

    def unit_for(self, format: str) -> Unit:
        """The unit that runs `format`. Raises DeviceError for a format that this device cannot run."""
        return self.unit(self._format(format)[0])

    def precisions(self, format: str) -> tuple[str, ...]:
        """Quantizer names, fastest first. Raises DeviceError for a format that this device cannot run."""
        return self._format(format)[1]

    def _format(self, format: str) -> tuple[str, tuple[str, ...]]:
        if format not in self.formats:
            raise DeviceError(
                f"{self.name} cannot run the format {format!r}", hint=f"it runs: {', '.join(self.formats)}"
            )
        return self.formats[format]


def profile_names() -> list[str]:
    """The profiles that come with edgekit."""
    folder = files("edgekit.devices") / "profiles"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_device(reference: str | Path) -> Device:
    """A profile by name, by alias, or by the path of a TOML file.

    Raises UnknownNameError (nearest name), or DeviceError for a file that is not a profile.
    """
    text = str(reference)
    if text.endswith(".toml"):
        path = Path(text)
        if not path.is_file():
            raise DeviceError(f"no profile at {path}", hint="write one with `edgekit devices probe -o FILE.toml`")
        return parse_profile(path.read_text(encoding="utf-8"), text)
    name = ALIASES.get(text, text)
    if name not in profile_names():
        raise UnknownNameError("device", text, [*profile_names(), *ALIASES])
    return _load_own(name)


@cache
def _load_own(name: str) -> Device:
    entry = files("edgekit.devices") / "profiles" / f"{name}.toml"
    return parse_profile(entry.read_text(encoding="utf-8"), name)


def parse_profile(text: str, origin: str) -> Device:
    """Raises DeviceError naming the key that is missing, unknown or of the wrong type."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DeviceError(f"profile {origin} is not TOML: {error}") from error
    try:
        return _device(table)
    except _ProfileError as error:
        raise DeviceError(
            f"profile {origin} does not fit: {error}",
            hint="`edgekit devices show raspberry-pi-5 --toml` prints one that does",
        ) from error


def figure_names(device: Device) -> Iterator[str]:
    """Each number of a profile as a dotted path, such as "units.cpu.peak_gflops.int8"; efficiencies left out."""
    yield from ("memory_bytes", "nominal_bandwidth_gbps")
    yield from (f"power_w.{state}" for state in device.power_w)
    for unit in device.units:
        prefix = f"units.{unit.name}"
        yield from (f"{prefix}.{key}" for key in ("cores", "clock_ghz", "bandwidth_gbps", "dispatch_us"))
        if unit.single_core_bandwidth_gbps is not None:
            yield f"{prefix}.single_core_bandwidth_gbps"
        yield from (f"{prefix}.peak_gflops.{precision}" for precision in unit.peak_gflops)
        yield from (f"{prefix}.sparse_gflops.{precision}" for precision in unit.sparse_gflops)


def covers(paths: Iterable[str], figure: str) -> bool:
    """Whether one of `paths` is `figure` or a prefix of it, at a dot."""
    return any(figure == path or figure.startswith(f"{path}.") for path in paths)


class _ProfileError(Exception):
    pass


class _Table:
    """One TOML table, read key by key: what is missing, unknown or of the wrong type is named with its place."""

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise _ProfileError(f"{place} is a {_kind(value)}, allowed a table")
        self._value, self._place = value, place

    def only(self, known: set[str]) -> None:
        for key in self._value:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                guess = f"; did you mean {near[0]!r}?" if near else ""
                raise _ProfileError(f"{self._place} has the unknown key {key!r}{guess} known: {_listed(known)}")

    def has(self, key: str) -> bool:
        return key in self._value

    def take(self, key: str, default: Any = None) -> Any:
        if key in self._value:
            return self._value[key]
        if default is None:
            raise _ProfileError(f"{self._place} lacks the key {key!r}")
        return default

    def text(self, key: str, default: str | None = None) -> str:
        value = self.take(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def number(self, key: str) -> float:
        return self._positive(key, self.take(key))

    def count(self, key: str) -> int:
        value = self.take(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._wrong(key, value, "an integer above 0")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        value = self.take(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, value, "a list of strings")
        return tuple(value)

    def numbers(self, key: str, *, optional: bool = False) -> dict[str, float]:
        rows = self.take(key, {} if optional else None)
        return {name: self._positive(f"{key}.{name}", value) for name, value in _Table(rows, key)._value.items()}

    def strings(self, key: str) -> dict[str, str]:
        table = _Table(self.take(key, {}), key)
        return {name: table.text(name) for name in table._value}

    def tables(self, key: str) -> Iterator[_Table]:
        rows = self.take(key)
        if not isinstance(rows, list) or not rows:
            raise self._wrong(key, rows, "an array of tables ([[units]])")
        for index, row in enumerate(rows):
            name = row.get("name", index) if isinstance(row, dict) else index
            yield _Table(row, f"{key} {name}")

    def children(self, key: str) -> Iterator[tuple[str, _Table]]:
        for name, row in _Table(self.take(key), key)._value.items():
            yield name, _Table(row, f"{key}.{name}")

    def _positive(self, key: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self._wrong(key, value, "a number above 0")
        return float(value)

    def _wrong(self, key: str, value: Any, allowed: str) -> _ProfileError:
        return _ProfileError(f"{self._place}: {key} is {value!r} ({_kind(value)}), allowed {allowed}")


def _kind(value: Any) -> str:
    return {"dict": "table", "list": "array", "str": "string", "bool": "boolean"}.get(
        type(value).__name__, type(value).__name__
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _device(value: dict[str, Any]) -> Device:
    table = _Table(value, "profile")
    table.only({field.name for field in fields(Device)})
    units = tuple(_unit(row) for row in table.tables("units"))
    formats = {}
    for name, row in table.children("formats"):
        row.only({"unit", "precisions"})
        formats[name] = (row.text("unit"), row.texts("precisions"))
        if formats[name][0] not in {unit.name for unit in units}:
            raise _ProfileError(f"formats.{name} names the unit {formats[name][0]!r}, which is not among the units")
    return Device(
        name=table.text("name"),
        title=table.text("title"),
        arch=table.text("arch"),
        memory_bytes=table.count("memory_bytes"),
        nominal_bandwidth_gbps=table.number("nominal_bandwidth_gbps"),
        units=units,
        formats=formats,
        power_mode=table.text("power_mode", ""),
        power_w=table.numbers("power_w", optional=True),
        efficiency=table.numbers("efficiency", optional=True),
        sources=table.strings("sources"),
        estimated=table.texts("estimated", ()),
    )


def _unit(row: _Table) -> Unit:
    row.only({field.name for field in fields(Unit)})
    single = "single_core_bandwidth_gbps"
    return Unit(
        name=row.text("name"),
        cores=row.count("cores"),
        clock_ghz=row.number("clock_ghz"),
        isa=row.texts("isa"),
        bandwidth_gbps=row.number("bandwidth_gbps"),
        dispatch_us=row.number("dispatch_us"),
        peak_gflops=row.numbers("peak_gflops"),
        sparse_gflops=row.numbers("sparse_gflops", optional=True),
        single_core_bandwidth_gbps=row.number(single) if row.has(single) else None,
    )

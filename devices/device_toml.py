"""A Device as the text of a profile that parses back to the same Device."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from edgekit.devices.device import Device, Unit

Scalar = str | int | float


def to_toml(device: Device) -> str:
    lines = [
        f"name = {_scalar(device.name)}",
        f"title = {_scalar(device.title)}",
        f"arch = {_scalar(device.arch)}",
        f"memory_bytes = {device.memory_bytes}",
        f"nominal_bandwidth_gbps = {_scalar(device.nominal_bandwidth_gbps)}",
        f"power_mode = {_scalar(device.power_mode)}",
        f"estimated = {_list(device.estimated)}",
        *_table("power_w", device.power_w),
    ]
    for unit in device.units:
        lines += _unit(unit)
    lines += ["", "[formats]"]
    for name, (unit_name, precisions) in device.formats.items():
        lines += ["", f"[formats.{_scalar(name)}]", f"unit = {_scalar(unit_name)}", f"precisions = {_list(precisions)}"]
    lines += _table("efficiency", device.efficiency)
    lines += _table("sources", device.sources)
    return "\n".join(lines) + "\n"


def _unit(unit: Unit) -> list[str]:
    lines = [
        "",
        "[[units]]",
        f"name = {_scalar(unit.name)}",
        f"cores = {unit.cores}",
        f"clock_ghz = {_scalar(unit.clock_ghz)}",
        f"isa = {_list(unit.isa)}",
        f"bandwidth_gbps = {_scalar(unit.bandwidth_gbps)}",
    ]
    if unit.single_core_bandwidth_gbps is not None:
        lines.append(f"single_core_bandwidth_gbps = {_scalar(unit.single_core_bandwidth_gbps)}")
    return [
        *lines,
        f"dispatch_us = {_scalar(unit.dispatch_us)}",
        f"peak_gflops = {_inline(unit.peak_gflops)}",
        f"sparse_gflops = {_inline(unit.sparse_gflops)}",
    ]


def _table(name: str, rows: Mapping[str, Scalar]) -> list[str]:
    return ["", f"[{name}]", *(f"{_scalar(key)} = {_scalar(value)}" for key, value in rows.items())]


def _inline(rows: Mapping[str, float]) -> str:
    return "{ " + ", ".join(f"{_scalar(key)} = {_scalar(value)}" for key, value in rows.items()) + " }"


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(_scalar(value) for value in values) + "]"


def _scalar(value: Scalar) -> str:
    """A JSON string is a TOML basic string, but for DEL, which TOML wants escaped."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)

"""Facts about the machine that this process runs on. Standard library only."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# The kernel's name of a feature -> ours; only those that decide which kernels a runtime picks.
FEATURES = {
    "avx2": "avx2", "avx512f": "avx512f", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16", "amx_int8": "amx_int8", "amx_bf16": "amx_bf16",
    "asimd": "neon", "neon": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "sve2": "sve2",
}  # fmt: skip
CPUINFO = Path("/proc/cpuinfo")
MAX_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")


@dataclass(frozen=True)
class Machine:
    """`cores` are those this process may use. `clock_ghz` is the highest that the system tells, None where it tells
    none (virtual machines, some boards). `isa` is empty where the system has no /proc/cpuinfo."""

    cpu: str
    arch: str
    cores: int
    clock_ghz: float | None
    memory_bytes: int
    isa: tuple[str, ...]
    system: str


def this_machine() -> Machine:
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    fields = parse_cpuinfo(text)
    return Machine(
        cpu=fields.get("model name") or fields.get("model") or platform.processor() or platform.machine(),
        arch={"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine()),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        clock_ghz=_clock_ghz(fields),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        isa=instruction_set(fields),
        system=f"{platform.system()} {platform.release()}",
    )


def parse_cpuinfo(text: str) -> dict[str, str]:
    """The first value of each key, keys in lower case."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def instruction_set(fields: dict[str, str]) -> tuple[str, ...]:
    """The features worth knowing, from `flags` (x86) or `Features` (ARM)."""
    present = f"{fields.get('flags', '')} {fields.get('features', '')}".split()
    return tuple(dict.fromkeys(name for feature, name in FEATURES.items() if feature in present))


def _clock_ghz(fields: dict[str, str]) -> float | None:
    if MAX_FREQUENCY.is_file():
        return int(MAX_FREQUENCY.read_text()) / 1e6
    return float(fields["cpu mhz"]) / 1e3 if "cpu mhz" in fields else None

"""What stands beside every timing: the instruction set, and the most memory that this process has held. And how long a
server's thread may keep the interpreter, and how seldom it stops for rubbish."""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path

from edgekit.devices.machine import this_machine

# A thread that comes back from the runtime waits at most this long for one that holds the interpreter (5 ms without).
SWITCH_INTERVAL_S = 0.0005
# Younger objects are collected as ever. To walk all that 10,000 connections hold stops a process for 0.3 s, found some
# dozen objects, and came every 20 s with the 10 that Python begins with.
COLLECTIONS_BETWEEN_FULL_ONES = 100


def collect_all_rarely() -> None:
    """For a process that holds many connections."""
    gc.set_threshold(*gc.get_threshold()[:2], COLLECTIONS_BETWEEN_FULL_ONES)


def isa() -> str:
    """The architecture, then its features: "x86_64 avx2 avx512_vnni"."""
    machine = this_machine()
    return " ".join((machine.arch, *machine.isa))


def peak_memory_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The most memory that this process has held at once.

    From VmHWM where Linux has it: getrusage also counts what the process was before exec.
    """
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

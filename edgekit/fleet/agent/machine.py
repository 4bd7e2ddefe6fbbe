"""What runs on this machine, told by a process of its own: looking costs memory that the daemon should not keep.

python -m edgekit.fleet.agent.machine    the child: {"formats": [...], "profile": "...", "memory_bytes": ...} as JSON
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from edgekit.bundle.manifest import Part

logger = logging.getLogger("edgekit")

TIMEOUT_S = 60.0
MODEL = Path("/proc/device-tree/model")
# Formats whose files hold code of one processor, where the others are compiled where they run.
COMPILED = ("inductor",)


@dataclass(frozen=True)
class MachineFacts:
    """`profile`: the device profile that this is, "" where none is known."""

    formats: tuple[str, ...] = ()
    profile: str = ""
    memory_bytes: int = 0


def read_machine() -> MachineFacts:
    """Of this machine; nothing where it cannot be found out, which is logged."""
    command = [sys.executable, "-m", "edgekit.fleet.agent.machine"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        return MachineFacts(tuple(found["formats"]), found["profile"], found["memory_bytes"])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as error:
        logger.warning("this machine cannot be described: %s", error)
        return MachineFacts()


def look(model: Path = MODEL) -> MachineFacts:
    from edgekit.devices.machine import this_machine
    from edgekit.devices.probe import RUNTIMES

    formats = tuple(name for name, (packages, _) in RUNTIMES.items() if any(map(find_spec, packages)))
    return MachineFacts(formats, profile_of(model), this_machine().memory_bytes)


def profile_of(model: Path) -> str:
    """The profile whose title begins like the board's own name: `Raspberry Pi 4 Model B Rev 1.5`."""
    from edgekit.devices.device import load_device, profile_names

    try:
        board = model.read_text(errors="replace").strip("\0\n ").lower()
    except OSError:
        return ""
    titles = {name: load_device(name).title.split(",")[0].lower() for name in profile_names()}
    fitting = [name for name, title in titles.items() if title in board]
    return max(fitting, key=lambda name: len(titles[name]), default="")


def misfit(made_on: str, parts: Sequence[Part], formats: Collection[str], arch: str) -> str:
    """Why none of `parts`, made for the profile `made_on`, can run on a machine of this kind; "" where one can."""
    if not parts:
        return "it holds nothing for this tier"
    runnable = [part for part in parts if part.format in formats]
    if not runnable:
        there = ", ".join(sorted({part.format for part in parts}))
        return f"it is made of {there}, and what runs here is {', '.join(formats) or 'nothing'}"
    made_for = arch_of(made_on)
    if made_for and made_for != arch and all(part.format in COMPILED for part in runnable):
        return f"it is compiled for {made_for} ({made_on}), and this is {arch}"
    return ""


def arch_of(profile: str) -> str:
    """ "" for a profile that is not known here."""
    from edgekit.devices.device import load_device, profile_names

    return load_device(profile).arch if profile in profile_names() else ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(look())) + "\n")

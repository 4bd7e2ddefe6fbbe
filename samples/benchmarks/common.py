"""What every benchmark here shares: facts about the machine, fair timing side by side, and where results go."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgekit.devices.machine import this_machine
from edgekit.runtimes.host import isa

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def no_options(description: str | None) -> None:
    """For a script that has no options of its own: tells what it does on --help, and ends on any other word."""
    argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    ).parse_args()


def commit() -> str:
    """The commit that is measured, marked where the working tree differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True).stdout.strip()

    changed = git(
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":(top,exclude)README.md",
        ":(top,exclude)samples/benchmarks/results",
    )
    return git("rev-parse", "--short=10", "HEAD") + ("+changes" if changed else "")


def environment(threads: int, packages: tuple[str, ...] = ("torch", "onnxruntime", "ai-edge-litert")) -> dict[str, Any]:
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": this_machine().cpu,
        "isa": isa(),
        "threads": threads,
        "commit": commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": versions,
    }


def medians_ms(calls: Mapping[str, Callable[[], object]], rounds: int = 7, lap_s: float = 0.5) -> dict[str, float]:
    """The median latency of each call in ms: `rounds` turns through all of them, each for `lap_s`, warmed up first.

    Turns make a change of the machine's speed meet all of them alike; within a turn a call runs back to back, as it
    would in a loop of its own.
    """
    laps: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            end = time.perf_counter() + lap_s
            while time.perf_counter() < end:
                start = time.perf_counter()
                call()
                if turn:
                    laps[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in laps.items()}


def save(name: str, value: Mapping[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return path


def rounded(value: Any, digits: int = 4) -> Any:
    """Floats to `digits` significant figures, all the way down."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry, digits) for entry in value]
    return value

"""Whole commands, timed from outside: start-up of the command line and of the run side, and one export.

python samples/benchmarks/commands.py [--skip-export]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import environment, rounded, save

STARTS = {
    "edgekit --help": [sys.executable, "-m", "edgekit", "--help"],
    "run-side import": [
        sys.executable,
        "-c",
        "import edgekit; edgekit.load, edgekit.Predictor; import edgekit.runtimes.onnx_session",
    ],
    "python alone": [sys.executable, "-c", "pass"],
}


def starts(runs: int = 11) -> dict[str, float]:
    """Median wall seconds of each, in turns."""
    laps: dict[str, list[float]] = {name: [] for name in STARTS}
    for turn in range(runs + 1):
        for name, command in STARTS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if turn:
                laps[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in laps.items()}


def export(device: str) -> dict[str, Any]:
    """`edgekit export efficientnet-lite0`, all formats of the device, from a new process to the bundle on disk."""
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "cats.edgekit")
        command = [
            sys.executable,
            "-m",
            "edgekit",
            "export",
            "efficientnet-lite0",
            "-d",
            device,
            "-o",
            target,
            "--json",
        ]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    told = json.loads(done.stdout)
    return {
        "device": device,
        "seconds": seconds,
        "peak_memory_bytes": told["peak_memory_bytes"],
        "chosen": told["parts"][0]["format"] + " " + told["parts"][0]["precision"],
        "candidates": len(told["candidates"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-export", action="store_true")
    result: dict[str, Any] = {"start_s": starts()}
    if not parser.parse_args().skip_export:
        result["export"] = export("raspberry-pi-5")
    result = rounded(result)
    print(json.dumps(result, indent=2))
    print("\nwritten:", save("commands", {**environment(2), **result}))


if __name__ == "__main__":
    main()

"""The main job on a real model: EfficientNet-Lite0 for a Raspberry Pi 5 and for a Jetson, run on photographs.

make demo            or            python samples/demo.py --out out
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from edgekit.zoo.photographs import HELD_OUT, photograph

DEVICES = ("raspberry-pi-5", "jetson")


def edgekit(*arguments: str) -> None:
    """One command of edgekit, printed before it runs; its failure is the demo's."""
    print(f"\n$ edgekit {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "edgekit", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the bundles and their reports")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    photographs = [str(photograph(name)) for name in HELD_OUT[:3]]
    for device in DEVICES:
        bundle = str(out / f"efficientnet-lite0-{device}.edgekit")
        edgekit("export", "efficientnet-lite0", "--device", device, "-o", bundle, "--force")
        edgekit("verify", bundle)
        edgekit("run", bundle, *(part for path in photographs for part in ("--input", path)))
        edgekit("benchmark", bundle, "--threads", "1")
        edgekit("inspect", bundle, "--report", str(out / f"report-{device}.html"), "--force")
    print("\nThe reports, with accuracy, layers, latency and memory:")
    for device in DEVICES:
        print(f"  {(out / f'report-{device}.html').resolve()}")


if __name__ == "__main__":
    main()

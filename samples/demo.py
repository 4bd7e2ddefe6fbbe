"""The main job on a real model: EfficientNet-Lite0 split between a Raspberry Pi 4, an edge node and a cloud server.

make demo            or            python -m samples.demo --out out

Exports the bundle, asks for a plan, starts edge and cloud as processes of their own with shaped links in between, and
answers photographs under every policy on six traces. The device's pace is emulated; see samples/coordinated.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from edgekit.cli.output import Cell, Column, Output, Table
from edgekit.cli.wording import ms_text, percent_text, size_text
from edgekit.planning.named_traces import TRACES
from edgekit.zoo.photographs import HELD_OUT, photograph
from samples.coordinated import Cell as Measured
from samples.coordinated import Hierarchy, named, run_cell

POLICIES = ("local", "offload", "split", "three-tier", "auto")
REQUESTS = 12
THINK_MS = 100.0
DEADLINE_MS = 400.0
MAX_DROP = 3.0


def edgekit(*arguments: str) -> None:
    """One command of edgekit, printed before it runs; its failure is the demo's."""
    print(f"\n$ edgekit {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "edgekit", *arguments], check=True)


def views() -> list[dict[str, np.ndarray]]:
    from edgekit.zoo.efficientnet import PREPROCESS
    from edgekit.zoo.photographs import views as cut

    return [{"image": view.numpy()} for name in HELD_OUT for view in cut(photograph(name), PREPROCESS, 3)]


def float_classes(feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """What the float model in torch says of each view."""
    import torch

    from edgekit.zoo.efficientnet import efficientnet_lite0

    model = efficientnet_lite0()
    return np.array([int(model.forward({"image": torch.from_numpy(f["image"])})["logits"].argmax()) for f in feeds])


def measure(bundle: Path, requests: int) -> list[Measured]:
    feeds = views()
    reference = float_classes(feeds)
    cells = []
    with Hierarchy(bundle) as hierarchy:
        offered = {variant.name for variant in hierarchy.bundle.manifest.variants}
        policies = [p for p in POLICIES if p != "cascade" or any(name.startswith("cascade") for name in offered)]
        for trace in named(list(TRACES)):
            for policy in policies:
                begun = time.perf_counter()
                cell = run_cell(
                    hierarchy, trace, policy, feeds, reference,
                    requests=requests, think_ms=THINK_MS, deadline_ms=DEADLINE_MS, max_drop=MAX_DROP,
                )  # fmt: skip
                cells.append(cell)
                print(f"  {trace.name}, {policy}: {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
    return cells


def table(cells: list[Measured]) -> Table:
    columns = (
        Column("trace", style="cyan"),
        Column("policy"),
        Column("p50 ms", number=True),
        Column("p95 ms", number=True),
        Column("sent", number=True),
        Column("energy mJ", number=True),
        Column("agreement", number=True),
        Column("degraded", number=True),
        Column("answered by"),
    )
    best = {cell.trace: min(c.p50_ms for c in cells if c.trace == cell.trace) for cell in cells}
    rows = []
    for cell in cells:
        style = "bold green" if cell.p50_ms == best[cell.trace] else ""
        rows.append(
            (
                cell.trace,
                Cell(
                    "edgekit (auto)" if cell.policy == "auto" else cell.policy, "bold" if cell.policy == "auto" else ""
                ),
                Cell(ms_text(cell.p50_ms), style),
                ms_text(cell.p95_ms),
                size_text(cell.bytes_mean),
                "-" if cell.energy_mj is None else f"{cell.energy_mj:.0f}",
                percent_text(cell.agreement),
                str(cell.degraded),
                ", ".join(f"{tier} {count}" for tier, count in sorted(cell.tiers.items())),
            )
        )
    return Table(columns, rows, "Every policy on every trace, in real time over shaped links on loopback")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the bundle and its report")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="answers per policy and trace")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    bundle = out / "efficientnet-lite0-split.edgekit"
    edgekit(
        "export", "efficientnet-lite0", "--device", "raspberry-pi-4", "--edge", "x86-server", "--cloud", "x86-server",
        "--format", "litert", "--max-drop", f"{MAX_DROP:g}", "-o", str(bundle), "--force",
    )  # fmt: skip
    edgekit("plan", str(bundle), "--link", "10mbps,20ms")
    edgekit("run", str(bundle), "--input", str(photograph(HELD_OUT[0])), "--top", "3")
    print("\nDevice (pace of a Raspberry Pi 4, emulated), edge and cloud as processes, links shaped:", flush=True)
    Output().table(table(measure(bundle, options.requests)))
    report = out / "report-split.html"
    edgekit("inspect", str(bundle), "--report", str(report), "--force")
    print(f"\nThe report, with accuracy, rates, layers, latency and memory: {report.resolve()}")


if __name__ == "__main__":
    main()

"""What a Session costs over the bare runtime: p50 of both, call by call in one process, one thread.

python samples/benchmarks/overhead.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import environment, no_options, rounded, save

from edgekit.devices.device import load_device
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.registry import EXPORTERS
from edgekit.runtimes.session import SessionOptions
from edgekit.runtimes.timing import benchmark
from edgekit.zoo.efficientnet import efficientnet_lite0
from edgekit.zoo.fashion import fashion_cnn


def measure() -> dict[str, Any]:
    device, rows = load_device("x86-server"), {}
    for build, runs in ((fashion_cnn, 5000), (efficientnet_lite0, 300)):
        model, _ = prepare(build(), silent)
        feeds = {name: value.numpy() for name, value in model.example_inputs.items()}
        for format in ("onnx", "litert", "executorch"):
            with tempfile.TemporaryDirectory() as folder:
                artifact = EXPORTERS.load(format)().export(model, Path(folder), device)
                with artifact.open(model, SessionOptions(threads=1)) as session:
                    timing = benchmark(session, feeds, runs=runs, limit_s=60)
            rows[f"{model.name} {format}"] = {
                "p50_ms": timing.p50_ms,
                "raw_p50_ms": timing.raw_p50_ms,
                "overhead_ratio": timing.overhead_ratio,
                "overhead_us": timing.overhead_us,
            }
    return {"rows": rows}


def main() -> None:
    no_options(__doc__)
    torch.set_num_threads(2)
    result = rounded(measure())
    print(f"{'':34}  session ms   bare ms   ratio   overhead us")
    for name, row in result["rows"].items():
        print(
            f"{name:34} {row['p50_ms']:10.4f} {row['raw_p50_ms']:9.4f} {row['overhead_ratio']:8.3f}"
            f" {row['overhead_us']:10.1f}"
        )
    print("\nwritten:", save("overhead", {**environment(1), **result}))


if __name__ == "__main__":
    main()

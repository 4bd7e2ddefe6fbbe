"""The two Fashion-MNIST nets on all 10,000 test images: accuracy in float and int8, in every format.

python samples/benchmarks/fashion.py [--formats onnx litert executorch]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import environment, rounded, save

from edgekit.devices.device import load_device
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.quantizers.quantize import QuantizerOptions, mostly_convolutions, quantize
from edgekit.registry import EXPORTERS
from edgekit.runtimes.session import SessionOptions
from edgekit.zoo.fashion import MEAN, STD, fashion_cnn, fashion_vit
from samples.data import fashion_mnist


def measure(formats: list[str]) -> dict[str, Any]:
    data = fashion_mnist()
    images = ((data.test.astype(np.float32) - MEAN) / STD)[:, None]
    device = load_device("x86-server")
    rows: dict[str, Any] = {}
    for build in (fashion_cnn, fashion_vit):
        model, _ = prepare(build(), silent)
        method = "int8" if mostly_convolutions(model) else "int8-dynamic"
        for format in formats:
            exporter = EXPORTERS.load(format)()
            with tempfile.TemporaryDirectory() as folder:
                for precision in ("fp32", method):
                    made = model
                    if precision != "fp32":
                        made = quantize(model, precision, exporter.scheme(device), QuantizerOptions(), (), silent)
                    artifact = exporter.export(made, Path(folder), device)
                    with artifact.open(made, SessionOptions(threads=1)) as session:
                        name = session.inputs[0].name
                        right = sum(
                            int(next(iter(session.run({name: images[index : index + 1]}).values())).argmax())
                            == data.test_labels[index]
                            for index in range(len(images))
                        )
                    rows[f"{model.name} {format} {precision}"] = {
                        "accuracy": right / len(images),
                        "size_bytes": artifact.size_bytes,
                    }
    return {"images": len(images), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["onnx", "litert", "executorch"])
    torch.set_num_threads(2)
    result = rounded(measure(parser.parse_args().formats))
    for name, row in result["rows"].items():
        print(f"{name:44} {100 * row['accuracy']:6.2f} %  {row['size_bytes'] / 1e3:7.0f} kB")
    print("\nwritten:", save("fashion", {**environment(1), **result}))


if __name__ == "__main__":
    main()

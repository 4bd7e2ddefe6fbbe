"""Exports a trained sample for a Raspberry Pi 5 and runs the bundle on a photograph.

python samples/01_export_and_run.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import edgekit
from edgekit.zoo.photographs import photograph


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = edgekit.export(
            "efficientnet-lite0", device="raspberry-pi-5", format="onnx", output=str(Path(folder) / "cats.edgekit")
        )
        for part in bundle.manifest.parts:
            print(f"{part.name}: {part.format}, {part.precision}, {part.size_bytes / 1e6:.1f} MB")
        with edgekit.load(bundle) as session:
            prediction = edgekit.Predictor(bundle, session).predict(photograph("skimage/chelsea.png"), count=3)
        print(prediction.to_json())


if __name__ == "__main__":
    main()

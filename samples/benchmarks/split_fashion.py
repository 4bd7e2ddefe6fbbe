"""The Fashion-MNIST net cut in two, as a bundle whose edge runs the tail."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import describe_file, write_bundle
from edgekit.bundle.manifest import Codec, Manifest, Part, Provenance, Rate, TensorEntry, Tier, Variant
from edgekit.devices.device import load_device
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.passes.capture import Capture
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.split import split
from edgekit.zoo.fashion import fashion_cnn

CUT = "features.5"


def make_bundle(path: Path, gain: float = 1.0) -> tuple[Path, np.ndarray, np.ndarray]:
    """(bundle, images float32 [n, 1, 28, 28], logits [n, 10] of the float net). `gain` makes another version of it."""
    import torch

    model = fashion_cnn()
    with torch.no_grad():
        model.module.classifier.weight.mul_(gain)  # type: ignore[union-attr, operator]
    captured = Capture()(model)
    head, tail = split(captured, [find_cut(captured, CUT)])
    device = load_device("raspberry-pi-5")
    parts, files = [], {}
    with tempfile.TemporaryDirectory() as folder:
        rows: tuple[tuple[str, Any, Tier], ...] = (
            ("whole", captured, "device"),
            ("head", head, "device"),
            ("tail", tail, "edge"),
        )
        for name, stage, tier in rows:
            artifact = OnnxExporter().export(stage, Path(folder), device)
            data = artifact.path.read_bytes()
            inputs, outputs = artifact.interface(stage)
            files[f"parts/{name}.onnx"] = data
            parts.append(
                Part(
                    **describe_file(f"{name}.onnx", data).model_dump(),
                    name=name,
                    tier=tier,
                    format="onnx",
                    precision="fp32",
                    inputs=tuple(TensorEntry.of(spec) for spec in inputs),
                    outputs=tuple(TensorEntry.of(spec) for spec in outputs),
                )
            )
    size = parts[1].outputs[0].spec().size_bytes
    manifest = Manifest(
        name="fashion-cnn",
        task="image-classification",
        device="raspberry-pi-5",
        tiers={"edge": "x86-server"},
        parts=tuple(parts),
        codecs=(
            Codec(
                name="plain",
                kind="plain",
                features=parts[1].outputs,
                rates=(Rate(bytes_mean=size, bytes_p95=size, drop=0.0),),
            ),
        ),
        variants=(
            Variant(name="local", parts=("whole",)),
            Variant(name="split", parts=("head", "tail"), codecs=("plain",)),
        ),
        provenance=Provenance(
            edgekit="0", versions={}, source_kind="sample", source="fashion-cnn", source_sha256="0" * 64, recipe={}
        ),
    )
    write_bundle(path, manifest, files, {"schema_version": 1}, "<!doctype html>")
    images = np.concatenate([sample["image"].numpy() for sample in model.held_out])
    with torch.no_grad():
        logits = model.module(torch.from_numpy(images)).numpy()
    return path, images, logits

"""DINOv2 ViT-S/14 in int8 and with fewer tokens: features, k-NN, linear probe and latency, beside plain quantization.

    python samples/benchmarks/dinov2.py [--test 500] [--references 1500] [--recipes NAME ...]

Fashion-MNIST (Debian's dataset-fashion-mnist), as pictures of 224 px: the CLS features of `--test` test images against
float by cosine, and their classes by the ten nearest of `--references` training images and by a linear probe on these.
Calibration is on photographs; none of it is Fashion-MNIST. Every latency is of one picture, all in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from common import RESULTS, environment, medians_ms, rounded, save

from edgekit.devices.device import load_device
from edgekit.evaluation.embeddings import neighbour_classes, probe_classes, row_cosines
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.quantizers.quantize import QuantizerOptions, quantize
from edgekit.runtimes.session import SessionOptions
from edgekit.zoo.dinov2 import PREPROCESS, dinov2_small
from samples.data import fashion_mnist

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """`flops`: share of the encoder's that token merging leaves; 1 merges none."""

    name: str
    precision: str
    flops: float = 1.0


RECIPES = (
    Recipe("edgekit float", "fp32"),
    Recipe("edgekit int8", "int8"),
    Recipe("edgekit int8-dynamic", "int8-dynamic"),
    Recipe("edgekit float, merge@0.7", "fp32", 0.7),
    Recipe("edgekit int8, merge@0.7", "int8", 0.7),
    Recipe("edgekit int8, merge@0.57", "int8", 0.57),
    Recipe("edgekit int8, merge@0.5", "int8", 0.5),
    Recipe("edgekit int8, merge@0.4", "int8", 0.4),
)


def pictures(pixels: np.ndarray) -> np.ndarray:
    """uint8 [N, 28, 28] -> float32 [N, 3, 224, 224] as the model wants it."""
    grey = torch.from_numpy(pixels.copy()).float().unsqueeze(1)
    large = torch.nn.functional.interpolate(grey, size=(224, 224), mode="bicubic", align_corners=False).clamp(0, 255)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (PREPROCESS.mean, PREPROCESS.std))
    return ((large.expand(-1, 3, -1, -1) - mean) / std).numpy()


def features(run: Run, pixels: np.ndarray) -> np.ndarray:
    """[N, 384], one picture at a time, as a device would."""
    return np.concatenate([run(pictures(pixels[index : index + 1])) for index in range(len(pixels))])


def build(recipe: Recipe, model: Model, folder: Path, stack: ExitStack) -> tuple[Run, int, str]:
    """(how to run it, bytes, what was done)"""
    device, exporter = load_device("x86-server"), OnnxExporter()
    detail = ""
    if recipe.flops < 1:
        model = PruneTokens("merge", recipe.flops)(model)
        detail = model.history[-1].detail
    made, _ = prepare(model, silent)
    if recipe.precision != "fp32":
        made = quantize(made, recipe.precision, exporter.scheme(device), QuantizerOptions(), (), silent)
    place = folder / recipe.name.replace(" ", "-").replace(",", "")
    place.mkdir()
    artifact = exporter.export(made, place, device)
    session = stack.enter_context(artifact.open(made, SessionOptions(threads=1)))
    return lambda image: session.run({"image": image})["embedding"], artifact.size_bytes, detail


def peers(float_path: Path, model: Model, folder: Path) -> dict[str, tuple[Run, int]]:
    """ONNX Runtime's own quantizers on the float artifact."""
    import onnxruntime
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter([{"image": sample["image"].numpy()} for sample in model.calibration[:64]])

        def get_next(self) -> Any:
            return next(self.rows, None)

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(float_path), str(prepared), skip_symbolic_shape=True)
    dynamic, static = folder / "dynamic.onnx", folder / "static.onnx"
    quantize_dynamic(str(prepared), str(dynamic), per_channel=True, weight_type=QuantType.QInt8)
    quantize_static(
        str(prepared),
        str(static),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found: dict[str, tuple[Run, int]] = {}
    for name, path in (("ONNX Runtime dynamic", dynamic), ("ONNX Runtime static", static)):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found[name] = (lambda image, session=session: session.run(None, {"image": image})[0], path.stat().st_size)
    return found


def judged(run: Run, reference: np.ndarray | None, references: int, test: int) -> tuple[np.ndarray, dict[str, float]]:
    """(features of the test images, what they are worth); `reference`: those of the float model, None: its own."""
    data = fashion_mnist()
    known, found = features(run, data.train[:references]), features(run, data.test[:test])
    cosine = row_cosines(found, found if reference is None else reference)
    classes, truth = data.train_labels[:references].astype(int), data.test_labels[:test]
    return found, {
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "knn": float((neighbour_classes(known, classes, found) == truth).mean()),
        "probe": float((probe_classes(known, classes, found) == truth).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--references", type=int, default=1500)
    parser.add_argument("--recipes", nargs="*", default=[recipe.name for recipe in RECIPES])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only-time", action="store_true", help="again, and keep the recorded quality")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = dinov2_small()
    kept = json.loads((RESULTS / "dinov2.json").read_text(encoding="utf-8")) if asked.only_time else None
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder, runs = Path(place), {}
        for recipe in RECIPES:
            if recipe.name not in (*asked.recipes, RECIPES[0].name) or (kept and recipe.name not in kept["rows"]):
                continue
            run, size, detail = build(recipe, model, folder, stack)
            runs[recipe.name] = run
            rows[recipe.name] = {"size_bytes": size, "detail": detail}
            print(f"built {recipe.name}", flush=True)
        if not asked.no_peers:
            path = next((folder / "edgekit-float").glob("*.onnx"))
            for name, (run, size) in peers(path, model, folder).items():
                runs[name], rows[name] = run, {"size_bytes": size, "detail": ""}
        reference: np.ndarray | None = None
        for name, run in runs.items():
            if kept is not None:
                rows[name] = kept["rows"][name]
                continue
            found, worth = judged(run, reference, asked.references, asked.test)
            reference = found if reference is None else reference
            rows[name] |= worth
            print(f"{name:28}", {k: v for k, v in rounded(rows[name]).items() if k != "detail"}, flush=True)
        example = model.example_inputs["image"].numpy()
        times = medians_ms({name: (lambda run=run: run(example)) for name, run in runs.items()}, lap_s=1.0)
    whole = times[RECIPES[0].name]
    for name, p50 in times.items():
        rows[name] |= {"p50_ms": p50, "times_float": p50 / whole}
        print(f"{name:28} {p50:7.1f} ms {p50 / whole:6.3f}x", flush=True)
    counts = {"test": asked.test, "references": asked.references}
    if kept is not None:
        counts = {name: kept[name] for name in counts} | {"judged_at": kept.get("judged_at", kept["commit"])}
    print("written:", save("dinov2", rounded({**environment(1), **counts, "rows": rows}, 5)))


if __name__ == "__main__":
    main()

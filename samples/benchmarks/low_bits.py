"""The small ViT of Fashion-MNIST below 8 bits: RepQuant beside plain static quantization, each in its ONNX artifact.

    python samples/benchmarks/low_bits.py [--test 10000] [--dinov2]

SQNR of the logits against float, and accuracy on the test images. Three kinds of plain: PT2E with min-max observers
and its XNNPACK quantizer held to 6 bits (simulated in torch: no format carries it), and edgekit's own static
quantization (min-max, nearest) of every operator that has integers, and of the layers with weights alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from common import environment, rounded, save

from edgekit.devices.device import load_device
from edgekit.evaluation.intervals import share
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.quantizers.base import Quantizer
from edgekit.quantizers.low_bits import W4A8, W6A6
from edgekit.quantizers.mxfp4 import Mxfp4
from edgekit.quantizers.repquant import RepQuant
from edgekit.quantizers.schemes import ONNX_X86
from edgekit.quantizers.static import StaticInt8
from edgekit.quantizers.weight_only import WeightOnlyInt4
from edgekit.report.metrics import cosine, sqnr_db
from edgekit.runtimes.session import SessionOptions
from edgekit.zoo.dinov2 import dinov2_small
from edgekit.zoo.fashion import MEAN, STD, fashion_vit
from samples.data import fashion_mnist

SIX = replace(ONNX_X86, weight_bits=6, activation_bits=6)
FOUR = replace(ONNX_X86, weight_bits=4)
PLAIN: dict[str, Any] = {"smooth": False, "learned_rounding": False, "bias_correction": False}
QUANTIZERS: dict[str, Quantizer] = {
    "plain W6A6, every operator": StaticInt8(SIX, elementwise=True, **PLAIN),
    "plain W6A6, layers": StaticInt8(SIX, **PLAIN),
    "RepQuant W6A6": W6A6(ONNX_X86),
    "RepQuant W6A6, attention too": W6A6(ONNX_X86, attention=True),
    "plain W4A8, layers": StaticInt8(FOUR, **PLAIN),
    "RepQuant W4A8": W4A8(ONNX_X86),
    "plain W8A8, layers": StaticInt8(ONNX_X86, **PLAIN),
    "RepQuant W8A8": RepQuant(ONNX_X86),
    "int4 weight-only": WeightOnlyInt4(ONNX_X86),
    "MXFP4 weight-only": Mxfp4(ONNX_X86),
}
PEER = "PT2E min-max W6A6"
Run = Callable[[np.ndarray], np.ndarray]


def answers(run: Run, images: np.ndarray, batch: int = 250) -> np.ndarray:
    return np.concatenate([run(images[start : start + batch]) for start in range(0, len(images), batch)])


def built(model: Model, quantizer: Quantizer | None, folder: Path, images: np.ndarray) -> tuple[np.ndarray, int]:
    """(outputs of the ONNX artifact, its bytes)"""
    made = model if quantizer is None else quantizer(model, silent)
    folder.mkdir()
    artifact = OnnxExporter().export(made, folder, load_device("x86-server"))
    (name,), (output,) = model.example_inputs, model.output_names
    size = 250 if model.dynamic else 1
    with artifact.open(made, SessionOptions(threads=1)) as session:
        return answers(lambda rows: session.run({name: rows})[output], images, size), artifact.size_bytes


def pt2e(model: Model) -> Run:
    """torchao's own flow: an observer behind every operator that XNNPACK runs in integers, 6 bits everywhere."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import QuantizationConfig
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    activation = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=63,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-20),
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-31,
        quant_max=31,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-20),
    )
    config = QuantizationConfig(activation, activation, weight, None)
    prepared = prepare_pt2e(model.copy_graph(), XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for sample in model.calibration:
            prepared(*sample.values())
    converted = convert_pt2e(prepared)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = converted(torch.from_numpy(images))
        return np.asarray(found[0] if isinstance(found, tuple | list) else found)

    return run


def dinov2(folder: Path) -> dict[str, Any]:
    """Cosine of the features of held-out pictures, plain and with RepQuant in 8 bits, and 4-bit weights."""
    model, _ = prepare(dinov2_small(), silent)
    images = np.concatenate([sample["image"].numpy() for sample in model.held_out])
    wanted, size = built(model, None, folder / "dinov2-float", images)
    rows: dict[str, Any] = {"float": {"size_bytes": size}}
    for name in ("plain W8A8, layers", "RepQuant W8A8", "int4 weight-only", "MXFP4 weight-only"):
        got, size = built(model, QUANTIZERS[name], folder / f"dinov2-{name[:7]}-{len(rows)}", images)
        each = [cosine(want[None], one[None]) for want, one in zip(wanted, got, strict=True)]
        rows[name] = {"cosine_mean": float(np.mean(each)), "cosine_min": float(np.min(each)), "size_bytes": size}
        print(f"DINOv2 {name:28}", rounded(rows[name]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--dinov2", action="store_true", help="DINOv2 too: some minutes more")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = fashion_mnist()
    images = ((data.test[: asked.test].astype(np.float32) - MEAN) / STD)[:, None]
    labels = data.test_labels[: asked.test]
    model, _ = prepare(fashion_vit(), silent)
    rows: dict[str, dict[str, Any]] = {}

    def note(name: str, got: np.ndarray, size: int | None, wanted: np.ndarray | None) -> None:
        found = share(got.argmax(1) == labels)
        rows[name] = {"accuracy": found.value, "low": found.low, "high": found.high, "size_bytes": size}
        if wanted is not None:
            rows[name] |= {
                "sqnr_db": sqnr_db(wanted, got),
                "lost_points": 100 * (rows["float"]["accuracy"] - found.value),
            }
        print(f"{name:30}", rounded(rows[name]), flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        exact, size = built(model, None, folder / "float", images)
        note("float", exact, size, None)
        note(PEER, answers(pt2e(model), images), None, exact)
        for count, (name, quantizer) in enumerate(QUANTIZERS.items()):
            got, size = built(model, quantizer, folder / str(count), images)
            note(name, got, size, exact)
        result: dict[str, Any] = {"test": len(labels), "rows": rows}
        if asked.dinov2:
            result["dinov2"] = dinov2(folder)
    print("written:", save("low_bits", rounded({**environment(1), **result}, 5)))


if __name__ == "__main__":
    main()

"""MiniLM-L6 sentence embeddings in dynamic int8: speed-up over float, cosine, beside ONNX Runtime's quantize_dynamic.

python samples/benchmarks/minilm.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import environment, medians_ms, rounded, save

from edgekit.devices.device import load_device
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.parity import run_model, run_session
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.quantizers.quantize import QuantizerOptions, quantize
from edgekit.report.metrics import cosine
from edgekit.runtimes.session import SessionOptions
from edgekit.zoo.minilm import minilm


def measure() -> dict[str, Any]:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model, _ = prepare(minilm(), silent)
    reference = run_model(model, model.held_out)["embedding"]
    device, exporter, options = load_device("x86-server"), OnnxExporter(), SessionOptions(threads=1)
    feeds = {name: value.numpy() for name, value in model.example_inputs.items()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        quantized = quantize(model, "int8-dynamic", exporter.scheme(device), QuantizerOptions(), (), silent)
        whole, ours = exporter.export(model, folder, device), exporter.export(quantized, folder, device)
        quant_pre_process(str(whole.path), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
        theirs = folder / "peer.onnx"
        quantize_dynamic(str(folder / "prepared.onnx"), str(theirs), per_channel=True, weight_type=QuantType.QInt8)
        peer_options = onnxruntime.SessionOptions()
        peer_options.intra_op_num_threads = 1
        peer = onnxruntime.InferenceSession(str(theirs), peer_options, providers=["CPUExecutionProvider"])
        with whole.open(model, options) as float_session, ours.open(quantized, options) as int8_session:
            rows: dict[str, Any] = {}
            for name, artifact, session in (
                ("edgekit float", whole, float_session),
                ("edgekit int8-dynamic", ours, int8_session),
            ):
                answers = run_session(session, model.held_out)["embedding"]
                rows[name] = {"cosine": cosine(reference, answers), "size_bytes": artifact.size_bytes}
            answers = np.concatenate(
                [peer.run(None, {name: value.numpy() for name, value in one.items()})[0] for one in model.held_out]
            )
            rows["ONNX Runtime quantize_dynamic"] = {
                "cosine": cosine(reference, answers),
                "size_bytes": theirs.stat().st_size,
            }
            times = medians_ms(
                {
                    "edgekit float": lambda: float_session.run(feeds),
                    "edgekit int8-dynamic": lambda: int8_session.run(feeds),
                    "ONNX Runtime quantize_dynamic": lambda: peer.run(None, feeds),
                }
            )
    for name, p50 in times.items():
        rows[name] |= {"p50_ms": p50, "speedup": times["edgekit float"] / p50}
    return {"sentences": len(model.held_out), "tokens": int(feeds["input_ids"].shape[1]), "rows": rows}


def main() -> None:
    torch.set_num_threads(2)
    result = rounded(measure(), 5)
    print(f"{result['sentences']} sentences, {result['tokens']} tokens\n{'':32}  cosine   p50 ms   speed-up")
    for name, row in result["rows"].items():
        print(f"{name:32} {row['cosine']:7.4f} {row['p50_ms']:8.2f} {row['speedup']:8.2f}x")
    print("\nwritten:", save("minilm", {**environment(1), **result}))


if __name__ == "__main__":
    main()

"""EfficientNet-Lite0 in int8: quality on held-out photographs and latency, beside the stock quantizers of its runtimes.

    python samples/benchmarks/efficientnet.py [--photographs wheels|debian] [--formats onnx litert executorch]

The peers run in the same process and in turns with ours: ONNX Runtime's quantize_static (QDQ, per channel, u8 x s8,
min-max) and ai-edge-quantizer's static int8 recipe, both calibrated on the same inputs as ours; OpenVINO with NNCF
where they are installed. `--photographs debian` judges on several hundred photographs of Debian packages as well.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import environment, medians_ms, rounded, save

from edgekit.devices.device import load_device
from edgekit.model import Model, Sample
from edgekit.parity import judge, run_model, run_session
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.quantizers.quantize import QuantizerOptions, quantize
from edgekit.registry import EXPORTERS
from edgekit.report.metrics import wilson_interval
from edgekit.runtimes.preprocess import image_tensor
from edgekit.runtimes.session import Session, SessionOptions
from edgekit.zoo.efficientnet import efficientnet_lite0


class Runner:
    """A peer's artifact with the interface that the judge needs."""

    def __init__(self, call: Callable[[np.ndarray], np.ndarray]) -> None:
        self.call = call

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": self.call(feeds["image"])}

    format = "peer"


def peer_onnx(model: Model, float_path: Path, folder: Path) -> Runner:
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(model.calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.rows, None)
            return None if sample is None else {name: value.numpy() for name, value in sample.items()}

    quant_pre_process(str(float_path), str(folder / "prepared.onnx"))
    target = folder / "peer.onnx"
    quantize_static(
        str(folder / "prepared.onnx"),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    return Runner(lambda image: session.run(None, {"image": image})[0])


def peer_litert(model: Model, float_path: Path, folder: Path) -> Runner:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    work = quantizer.Quantizer(str(float_path), recipe.static_wi8_ai8())
    probe = Interpreter(str(float_path))
    signature = next(iter(probe.get_signature_list()))
    name = probe.get_signature_list()[signature]["inputs"][0]
    rows = [{name: sample["image"].numpy()} for sample in model.calibration]
    result = work.quantize(work.calibrate({signature: rows}))
    target = folder / "peer.tflite"
    result.export_model(str(target))
    interpreter = Interpreter(str(target), num_threads=1)
    interpreter.allocate_tensors()
    given, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale_in, zero_in = given["quantization"]
    scale_out, zero_out = answer["quantization"]

    def run(image: np.ndarray) -> np.ndarray:
        """The stock recipe's file takes and gives int8."""
        integers = np.clip(np.rint(image / scale_in) + zero_in, -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], integers)
        interpreter.invoke()
        logits = interpreter.get_tensor(answer["index"])
        return (logits.astype(np.float32) - zero_out) * np.float32(scale_out)

    return Runner(run)


def peer_openvino(model: Model, float_path: Path, folder: Path) -> Runner:
    import nncf
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1})
    graph = core.read_model(str(float_path))
    graph.reshape([1, 3, 224, 224])
    data = nncf.Dataset([sample["image"].numpy() for sample in model.calibration])
    compiled = core.compile_model(nncf.quantize(graph, data), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    return Runner(lambda image: next(iter(request.infer({0: image}).values())))


PEERS = {"onnx": ("ONNX Runtime quantize_static u8s8", peer_onnx), "litert": ("ai-edge-quantizer static", peer_litert)}


def held_out(model: Model, which: str) -> tuple[Sample, ...]:
    """Views of photographs that no calibration saw."""
    if which == "wheels":
        return model.held_out
    from samples.data import photographs, split_photographs

    calibration, judged = split_photographs(photographs())
    assert not set(calibration) & set(judged)
    preprocess = model.preprocess
    return tuple({"image": torch.from_numpy(image_tensor(path, preprocess))} for path in judged)  # type: ignore[arg-type]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    model, _ = prepare(efficientnet_lite0(), silent)
    samples = held_out(model, arguments.photographs)
    reference = run_model(model, samples)
    device = load_device(arguments.device)
    rows: dict[str, dict[str, Any]] = {}
    runners: dict[str, Runner | Session] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for format in arguments.formats:
            exporter = EXPORTERS.load(format)()
            start = time.perf_counter()
            quantized = quantize(model, "int8", exporter.scheme(device), QuantizerOptions(), (), silent)
            seconds = time.perf_counter() - start
            artifacts = {"float": (model, exporter.export(model, folder, device))}
            artifacts["int8"] = (quantized, exporter.export(quantized, folder, device))
            for precision, (made, artifact) in artifacts.items():
                name = f"edgekit {format} {precision}"
                runners[name] = artifact.open(made, SessionOptions(threads=1))
                rows[name] = {"size_bytes": artifact.size_bytes, "quantize_s": seconds if precision == "int8" else 0.0}
            float_path = artifacts["float"][1].path
            if format in PEERS:
                title, build = PEERS[format]
                runners[title] = build(model, float_path, folder)
                rows[title] = {}
            if format == "onnx" and arguments.openvino:
                runners["OpenVINO + NNCF"] = peer_openvino(model, float_path, folder)
                rows["OpenVINO + NNCF"] = {}
        feeds = {"image": model.example_inputs["image"].numpy()}
        for name, runner in runners.items():
            quality = judge(model, reference, run_session(runner, samples))  # type: ignore[arg-type]
            low, high = wilson_interval(quality.top1_agreement or 0.0, quality.samples)
            rows[name] |= {
                "agreement": quality.top1_agreement,
                "low": low,
                "high": high,
                "sqnr_db": quality.sqnr_db,
                "expected_drop_points": quality.drop,
            }
        times = medians_ms({name: lambda runner=runner: runner.run(feeds) for name, runner in runners.items()})
    for name, p50 in times.items():
        rows[name]["p50_ms"] = p50
    return {"samples": len(samples), "photographs": arguments.photographs, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", choices=("wheels", "debian"), default="wheels")
    parser.add_argument("--formats", nargs="+", default=["onnx", "litert", "executorch"])
    parser.add_argument("--device", default="x86-server")
    parser.add_argument("--openvino", action="store_true", help="also OpenVINO with NNCF (pip install openvino nncf)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    result = rounded(measure(arguments))
    best_peer = min(row["p50_ms"] for name, row in result["rows"].items() if not name.startswith("edgekit"))
    print(f"{'':36} agreement   (95 %)          SQNR dB   p50 ms   of fastest peer int8")
    for name, row in result["rows"].items():
        print(
            f"{name:36} {row['agreement']:8.3f}   {row['low']:.3f}-{row['high']:.3f}   {row['sqnr_db']:9.1f}"
            f" {row['p50_ms']:8.2f}   {row['p50_ms'] / best_peer:.2f}"
        )
    print("\nwritten:", save(f"efficientnet-{arguments.photographs}", {**environment(1), **result}))


if __name__ == "__main__":
    main()

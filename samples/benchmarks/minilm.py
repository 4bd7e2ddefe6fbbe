"""MiniLM-L6 sentence embeddings in dynamic int8: size, latency, cosine, similarity of pairs and retrieval.

    python samples/benchmarks/minilm.py [--pairs 300]

In ONNX Runtime beside the float file as torch.onnx writes it and quantize_dynamic of it; in LiteRT beside the float
file and ai-edge-quantizer's dynamic recipe of it. Pairs and documents come from
the documentation of installed packages (samples/sentences.py), none of them calibrated on. One thread, all in turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from common import environment, medians_ms, rounded, save

from edgekit.data import tokenize
from edgekit.devices.device import load_device
from edgekit.evaluation.disjoint import check_disjoint
from edgekit.evaluation.embeddings import row_cosines
from edgekit.evaluation.intervals import Interval, bootstrap, share, share_difference
from edgekit.evaluation.retrieval import recall_hits
from edgekit.evaluation.similarity import pair_auc, spearman
from edgekit.exporters.base import Exporter
from edgekit.exporters.litert_exporter import LitertExporter
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model, Sample
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.quantizers.quantize import QuantizerOptions, quantize
from edgekit.runtimes.session import SessionOptions
from edgekit.zoo.minilm import LENGTH, minilm
from samples.sentences import KINDS, Pairs, sentence_pairs

PLAIN, FLOAT, INT8, PEER = "torch.onnx float", "edgekit float", "edgekit int8-dynamic", "ONNX Runtime quantize_dynamic"
LITE_FLOAT, LITE_INT8 = "edgekit float, LiteRT", "edgekit int8-dynamic, LiteRT"
LITE_PEER = "ai-edge-quantizer dynamic_wi8_afp32"
# What each is timed against: the float file of its runtime without edgekit's precision.
BASES = dict.fromkeys((PLAIN, FLOAT, INT8, PEER), PLAIN) | dict.fromkeys((LITE_FLOAT, LITE_INT8, LITE_PEER), LITE_FLOAT)
RECALL_AT = 1

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def plain_sessions(original: Model, folder: Path) -> dict[str, tuple[Run, int]]:
    """What one gets without edgekit: torch.onnx, and ONNX Runtime's own quantizer behind it."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    paths = {PLAIN: folder / "plain.onnx", PEER: folder / "peer.onnx"}
    torch.onnx.export(
        original.module,
        tuple(original.example_inputs.values()),
        paths[PLAIN],
        dynamo=True,
        input_names=list(original.example_inputs),
        output_names=["sentence"],
        external_data=False,
        verbose=False,
    )
    quant_pre_process(str(paths[PLAIN]), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_dynamic(str(folder / "prepared.onnx"), str(paths[PEER]), per_channel=True, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found: dict[str, tuple[Run, int]] = {}
    for name, path in paths.items():
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found[name] = (lambda feeds, session=session: session.run(None, dict(feeds))[0], path.stat().st_size)
    return found


def our_sessions(
    model: Model, exporter: Exporter, names: tuple[str, str], folder: Path, stack: ExitStack
) -> dict[str, tuple[Run, int]]:
    """`names`: of the float file and of the one in dynamic int8, which are in `folder` afterwards."""
    device = load_device("x86-server")
    int8 = quantize(model, "int8-dynamic", exporter.scheme(device), QuantizerOptions(), (), silent)
    found: dict[str, tuple[Run, int]] = {}
    for name, made in zip(names, (model, int8), strict=True):
        artifact = exporter.export(made, folder, device)
        session = stack.enter_context(artifact.open(made, SessionOptions(threads=1)))
        found[name] = (lambda feeds, session=session: session.run(feeds)["embedding"], artifact.size_bytes)
    return found


def lite_peer(float_file: Path, folder: Path, inputs: list[str]) -> tuple[Run, int]:
    """`inputs`: names in the order in which the file numbers them."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    target = folder / "peer.tflite"
    quantizer.Quantizer(str(float_file), recipe.dynamic_wi8_afp32()).quantize().export_model(str(target))
    interpreter = Interpreter(str(target), num_threads=1)
    runner = interpreter.get_signature_runner()
    kinds = {name: detail["dtype"] for name, detail in runner.get_input_details().items()}

    def run(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        given = {f"args_{place}": feeds[name] for place, name in enumerate(inputs)}
        answers = runner(**{name: value.astype(kinds[name]) for name, value in given.items()})
        return next(iter(answers.values()))

    return run, target.stat().st_size


def as_feeds(samples: list[Sample]) -> list[dict[str, np.ndarray]]:
    return [{name: value.numpy() for name, value in sample.items()} for sample in samples]


def embed(run: Run, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """float32 [N, 384], one sentence at a time, as a device would."""
    return np.concatenate([run(one) for one in feeds])


def judge(
    pairs: Mapping[str, Pairs], embedded: Mapping[str, tuple[np.ndarray, np.ndarray]], wanted: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Per kind of pairs: AUC of related against unrelated ones, recall, and the points lost against `wanted`, the
    answers of the float model; `answers` are for the next call and no part of the result."""
    answers: dict[str, Any] = {}
    row: dict[str, Any] = {"answers": answers}
    for kind in pairs:
        first, second = embedded[kind]
        count = len(first)
        other = np.roll(second, 1, axis=0)  # no text stands twice, so that these are unrelated
        scores = np.concatenate([row_cosines(first, second), row_cosines(first, other)])
        related = np.arange(2 * count) < count
        hits = recall_hits(first, second, np.arange(count), RECALL_AT)
        answers[kind] = scores, hits
        row[kind] = {"auc": pair_auc(scores, related), "recall": as_dict(share(hits))}
        if wanted is not None:
            before, before_hits = wanted[kind]

            def lost(rows: np.ndarray, before: np.ndarray = before, scores: np.ndarray = scores) -> float:
                both = np.concatenate([rows, rows + len(rows)])
                mark = np.arange(len(both)) < len(rows)
                return pair_auc(before[both], mark) - pair_auc(scores[both], mark)

            row[kind] |= {
                "spearman_with_float": spearman(scores, before),
                "recall_lost": as_dict(share_difference(before_hits, hits)),
                "auc_lost": as_dict(bootstrap(lost, count, 500)),
            }
    return row


def as_dict(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def measure(count: int) -> dict[str, Any]:
    original = minilm()
    model, _ = prepare(original, silent)
    assert original.tokenizer is not None
    pairs = {kind: sentence_pairs(kind, count) for kind in KINDS}
    feeds = {
        kind: tuple(
            as_feeds(tokenize(side, original.tokenizer, list(model.example_inputs), LENGTH))
            for side in (pairs[kind].first, pairs[kind].second)
        )
        for kind in KINDS
    }
    held_out = as_feeds(list(model.held_out))
    calibration = as_feeds(list(model.calibration))
    check_disjoint(calibration, [*held_out, *(one for sides in feeds.values() for side in sides for one in side)])
    example = {name: value.numpy() for name, value in model.example_inputs.items()}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        found = {
            **plain_sessions(original, folder),
            **our_sessions(model, OnnxExporter(), (FLOAT, INT8), folder, stack),
            **our_sessions(model, LitertExporter(), (LITE_FLOAT, LITE_INT8), folder, stack),
        }
        found[LITE_PEER] = lite_peer(next(folder.glob("*fp32*.tflite")), folder, list(model.example_inputs))
        reference = embed(found[PLAIN][0], held_out)
        wanted: dict[str, Any] | None = None
        for name in BASES:
            run, size = found[name]
            cosine = row_cosines(embed(run, held_out), reference)
            embedded = {kind: (embed(run, feeds[kind][0]), embed(run, feeds[kind][1])) for kind in KINDS}
            judged = judge(pairs, embedded, wanted)
            answers = judged.pop("answers")
            wanted = answers if wanted is None else wanted
            rows[name] = {
                "size_bytes": size,
                "cosine": float(cosine.mean()),
                "cosine_min": float(cosine.min()),
                **judged,
            }
            print(f"judged {name}", flush=True)
        times = medians_ms({name: (lambda run=run: run(example)) for name, (run, _) in found.items()})
    for name, p50 in times.items():
        rows[name] |= {"p50_ms": p50, "speedup": times[BASES[name]] / p50}
    return {"sentences": len(held_out), "pairs": count, "tokens": int(example["input_ids"].shape[1]), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300, help="of each kind")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    result = rounded(measure(asked.pairs), 5)
    print(f"{result['sentences']} sentences, {result['pairs']} pairs of a kind, {result['tokens']} tokens")
    for name, row in result["rows"].items():
        print(
            f"{name:36} {row['size_bytes'] / 1e6:5.1f} MB {row['p50_ms']:6.2f} ms, {row['speedup']:.2f}x its float, "
            f"cosine {row['cosine']:.4f} / {row['cosine_min']:.4f}"
        )
        for kind in KINDS:
            one = row[kind]
            lost = one.get("recall_lost")
            print(
                f"    {kind:10} recall@{RECALL_AT} {one['recall']['value']:.3f}, AUC {one['auc']:.4f}"
                + (f"; lost {lost['value']:+.4f} [{lost['low']:+.4f}, {lost['high']:+.4f}]" if lost else "")
            )
    print("\nwritten:", save("minilm", {**environment(1), **result}))


if __name__ == "__main__":
    main()

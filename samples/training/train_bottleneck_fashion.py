"""Trains the learned bottleneck of fashion-cnn with labels, and the same for single rates to compare with.

    python -m samples.training.train_bottleneck_fashion

Judged on all 10,000 test images; bytes are those of whole frames, header and checksum included.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from edgekit.model import Model, flatten_outputs
from edgekit.passes.bottleneck.coders import Trained, identity, save_trained
from edgekit.passes.bottleneck.crossing import Crossing
from edgekit.passes.bottleneck.features import FeatureSet
from edgekit.passes.bottleneck.learned import LearnedBottleneck
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.split import split
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.runtimes.codecs.frame import frame_size
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.tensors import TensorSpec
from edgekit.zoo.fashion import fashion_cnn, normalize
from samples.data import fashion_mnist

CHECKPOINTS = Path(__file__).resolve().parents[2] / "edgekit/zoo/checkpoints"
CHUNK = 500

Point = dict[str, float]


def features_of(head: Model, tail: Model, images: Tensor) -> np.ndarray:
    """float16 [N, C, H, W] of uint8 images [N, 28, 28]."""
    crossing = Crossing.of(tail)
    with torch.no_grad():
        parts = [crossing.join(flatten_outputs(head.graph(normalize(part)))) for part in images.split(CHUNK)]
    return torch.cat(parts).half().numpy()


def training_set(head: Model, tail: Model, images: Tensor, labels: Tensor, seed: int) -> FeatureSet:
    """The training images, half of them mirrored."""
    flipped = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) < 0.5
    augmented = torch.where(flipped[:, None, None], images.flip(2), images)
    return FeatureSet(features_of(head, tail, augmented), np.arange(len(images)), labels.numpy())


def curve(trained: Trained, tail: Model, features: np.ndarray, labels: np.ndarray) -> list[Point]:
    """Bytes on the wire and accuracy of each rate, every image in a frame of its own."""
    crossing = Crossing.of(tail)
    with torch.no_grad():
        parts = [
            trained.coders.encoder(*crossing.part(torch.from_numpy(part.astype(np.float32))))
            for part in np.array_split(features, len(features) // CHUNK)
        ]
    components = torch.cat(parts).numpy()
    spec = TensorSpec("components", "float32", ("batch", *components.shape[1:]))
    codec = TransformCodec([spec], len(trained.steps), trained.tables)
    points = []
    for rate in range(len(trained.steps)):
        size, right = 0, 0
        for start in range(0, len(components), CHUNK):
            chunk = components[start : start + CHUNK]
            size += sum(frame_size(len(codec.encode([row[None]], rate)), [row[None].shape]) for row in chunk)
            (decoded,) = codec.decode(codec.encode([chunk], rate), [chunk.shape], rate)
            with torch.no_grad():
                answers = trained.coders.answer(torch.from_numpy(decoded))[0].argmax(1).numpy()
            right += int((answers == labels[start : start + CHUNK]).sum())
        points.append({"bytes": size / len(components), "accuracy": right / len(components)})
    return points


def at_bytes(points: list[Point], size: float) -> float:
    """Accuracy at `size` bytes, linear in between."""
    ordered = sorted(points, key=lambda point: point["bytes"])
    return float(np.interp(size, [p["bytes"] for p in ordered], [p["accuracy"] for p in ordered]))


@click.command(help=__doc__)
@click.option("--cut", default="features.7", show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True)
@click.option("--images", type=click.IntRange(1000), default=60_000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--single/--no-single", default=True, help="Also train for two rates alone.", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the states of an interrupted run.")
@click.option("--output", type=click.Path(path_type=Path), help="The JSON file; its weights lie beside it.")
def main(
    cut: str, epochs: int, images: int, seed: int, threads: int, single: bool, work: Path | None, output: Path | None
) -> None:
    torch.set_num_threads(threads)
    model, _ = prepare(fashion_cnn(), silent)
    head, tail = split(model, [find_cut(model, cut)])
    data = fashion_mnist()
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:images]
    train = training_set(
        head, tail, torch.from_numpy(data.train)[chosen], torch.from_numpy(data.train_labels)[chosen], seed
    )
    test = features_of(head, tail, torch.from_numpy(data.test))
    with torch.no_grad():
        whole = torch.cat(
            [flatten_outputs(tail.graph(torch.from_numpy(p).float()))[0] for p in np.array_split(test, 20)]
        )
    unsplit = float((whole.argmax(1).numpy() == data.test_labels).mean())
    click.echo(f"{cut}: {len(train)} images, accuracy without a bottleneck {unsplit:.4f}")

    options = LearnedBottleneck(
        rates=10, epochs=epochs, feature_epochs=1, batch=128, loss="labels", seed=seed, errors=(0.002, 0.4)
    )
    trained = options.fit(head, tail, train, checkpoint=work and work / "all")
    points = curve(trained, tail, test, data.test_labels)
    for step, point in zip(trained.steps, points, strict=True):
        click.echo(f"step {step:.3f}: {point['bytes']:.1f} bytes, accuracy {point['accuracy']:.4f}")
    results = {"accuracy": unsplit, "rates": points, "single": []}
    if single:
        for place in (2, 5):
            alone = LearnedBottleneck(
                rates=1, epochs=epochs, feature_epochs=1, batch=128, loss="labels", seed=seed, tail_drop=0.0
            ).fit_at(head, tail, train, [trained.steps[place]], checkpoint=work and work / f"alone-{place}")
            (point,) = curve(alone, tail, test, data.test_labels)
            behind = point["accuracy"] - at_bytes(points, point["bytes"])
            results["single"].append({**point, "points_ahead": 100 * behind})
            click.echo(
                f"trained alone: {point['bytes']:.1f} bytes, {point['accuracy']:.4f}, {100 * behind:+.2f} points"
            )
    path = output or CHECKPOINTS / f"bottleneck-fashion-cnn-{next(iter(identity(head, tail)['crossing']))}.json"
    facts = {"command": shlex.join(["python", "-m", "samples.training.train_bottleneck_fashion", *sys.argv[1:]])}
    save_trained(path, trained, head, tail, {**facts, "cut": cut, "results": results})
    click.echo(f"{path}: {path.with_suffix('.safetensors').stat().st_size:,} bytes")
    click.echo(json.dumps(results))


if __name__ == "__main__":
    main()

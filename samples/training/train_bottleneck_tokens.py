"""Trains the bottleneck tokens of fashion-vit behind one of its blocks, by distillation: no label is looked at.

    python -m samples.training.train_bottleneck_tokens --cut blocks.2 --work WORK

Labels of the 10,000 test images serve to judge alone; bytes are those of whole frames, header and checksum included.
An interrupted run goes on in WORK.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from edgekit.model import Model, flatten_outputs
from edgekit.passes.bottleneck.coders import Trained, save_trained
from edgekit.passes.bottleneck.tokens import TokenBottleneck, encode_all, ladder_of
from edgekit.passes.bottleneck.tokens_checkpoint import PREFIX
from edgekit.passes.bottleneck.tokens_coding import token_crossing
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.split import split
from edgekit.pipeline import prepare
from edgekit.progress import silent
from edgekit.runtimes.codecs.frame import frame_size
from edgekit.runtimes.codecs.transform import TransformCodec
from edgekit.tensors import TensorSpec
from edgekit.zoo.fashion import fashion_vit
from samples.data import fashion_mnist
from samples.training.train_bottleneck_fashion import CHECKPOINTS, CHUNK, features_of, training_set

Point = dict[str, Any]


def curve(trained: Trained, tail: Model, features: np.ndarray, labels: np.ndarray) -> list[Point]:
    """Vectors, bytes on the wire and accuracy of each rate, every image in a frame of its own."""
    crossing = token_crossing(tail)
    components = encode_all(trained.coders.encoder, crossing, torch.from_numpy(features).float()).numpy()
    spec = TensorSpec("components", "float32", ("batch", *components.shape[1:]))
    codec = TransformCodec([spec], len(trained.steps), trained.tables)
    points = []
    for rate, rung in enumerate(ladder_of(trained)):
        size, right = 0, 0
        for start in range(0, len(components), CHUNK):
            chunk = components[start : start + CHUNK]
            size += sum(frame_size(len(codec.encode([row[None]], rate)), [row[None].shape]) for row in chunk)
            (decoded,) = codec.decode(codec.encode([chunk], rate), [chunk.shape], rate)
            with torch.no_grad():
                answers = trained.coders.answer(torch.from_numpy(decoded))[0].argmax(1).numpy()
            right += int((answers == labels[start : start + CHUNK]).sum())
        points.append({"vectors": rung.count, "bytes": size / len(components), "accuracy": right / len(components)})
    return points


def told(step: str, done: int, total: int) -> None:
    if total and done % max(1, total // 20) == 0:
        click.echo(f"{step}: {done} of {total}", err=True)


@click.command(help=__doc__)
@click.option("--cut", default="blocks.2", show_default=True)
@click.option("--epochs", type=click.IntRange(0), default=4, help="0: the closed form.", show_default=True)
@click.option("--images", type=click.IntRange(1000), default=30_000, show_default=True)
@click.option("--loss", default="distillation", show_default=True)
@click.option("--rate-weight", type=float, default=TokenBottleneck.rate_weight, show_default=True)
@click.option("--learning-rate", type=float, default=TokenBottleneck.learning_rate, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--judged", type=click.IntRange(500), default=10_000, help="Test images.", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the states of an interrupted run.")
@click.option("--output", type=click.Path(path_type=Path), help="The JSON file; its weights lie beside it.")
def main(
    cut: str,
    epochs: int,
    images: int,
    loss: str,
    rate_weight: float,
    learning_rate: float,
    seed: int,
    threads: int,
    judged: int,
    work: Path | None,
    output: Path | None,
) -> None:
    torch.set_num_threads(threads)
    model, _ = prepare(fashion_vit(), silent)
    head, tail = split(model, [find_cut(model, cut)])
    data = fashion_mnist()
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:images]
    train = training_set(
        head, tail, torch.from_numpy(data.train)[chosen], torch.from_numpy(data.train_labels)[chosen], seed
    )
    if loss != "labels":
        train = replace(train, labels=None)
    test = features_of(head, tail, torch.from_numpy(data.test[:judged]))
    with torch.no_grad():
        parts = [flatten_outputs(tail.graph(torch.from_numpy(p).float()))[0] for p in np.array_split(test, 20)]
    unsplit = float((torch.cat(parts).argmax(1).numpy() == data.test_labels[:judged]).mean())
    click.echo(f"{cut}: {len(train)} images, accuracy without a bottleneck {unsplit:.4f}")

    options = TokenBottleneck(
        epochs=epochs, batch=128, loss=loss, rate_weight=rate_weight, learning_rate=learning_rate, seed=seed
    )
    trained = options.fit(head, tail, train, checkpoint=work, progress=told)
    points = curve(trained, tail, test, data.test_labels[:judged])
    for rung, point in zip(ladder_of(trained), points, strict=True):
        lost = 100 * (unsplit - point["accuracy"])
        click.echo(f"{rung.count} vectors at {rung.step:.3f}: {point['bytes']:.1f} bytes, {lost:+.2f} points lost")
    path = output or CHECKPOINTS / f"{PREFIX}fashion-vit-{cut.replace('.', '_')}.json"
    facts = {"command": shlex.join(["python", "-m", "samples.training.train_bottleneck_tokens", *sys.argv[1:]])}
    save_trained(path, trained, head, tail, {**facts, "cut": cut, "results": {"accuracy": unsplit, "rates": points}})
    click.echo(f"{path}: {path.with_suffix('.safetensors').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

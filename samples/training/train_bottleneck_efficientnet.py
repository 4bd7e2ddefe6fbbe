"""Trains the learned bottleneck of efficientnet-lite0 by distillation, without labels, on pictures from packages.

    python -m samples.training.train_bottleneck_efficientnet --cut blocks.14 --work /var/tmp/bottleneck

The head's features are computed once into --work; an interrupted run continues there. No held-out photograph is seen.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click
import numpy as np
import torch

from edgekit.model import Model, flatten_outputs
from edgekit.passes.bottleneck.coders import identity, save_trained
from edgekit.passes.bottleneck.crossing import Crossing
from edgekit.passes.bottleneck.features import FeatureSet
from edgekit.passes.bottleneck.learned import LearnedBottleneck
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.split import split
from edgekit.pipeline import prepare
from edgekit.progress import Progress, silent
from edgekit.runtimes.preprocess import normalize
from edgekit.zoo.efficientnet import PREPROCESS, efficientnet_lite0
from samples.training.pictures import random_crops, training_pictures
from samples.training.train_bottleneck_fashion import CHECKPOINTS

BATCH = 32


def features_of_crops(head: Model, tail: Model, folder: Path, count: int, seed: int, progress: Progress) -> FeatureSet:
    """`count` crops through the head; kept in `folder`, and taken from there the next time."""
    folder.mkdir(parents=True, exist_ok=True)
    path, groups_path, facts_path = folder / "features.npy", folder / "groups.npy", folder / "features.json"
    facts = {"crossing": identity(head, tail), "count": count, "seed": seed}
    if facts_path.exists() and json.loads(facts_path.read_text(encoding="utf-8")) == facts:
        return FeatureSet(np.load(path, mmap_mode="r"), np.load(groups_path))
    crossing = Crossing.of(tail)
    shape = crossing.join(tuple(tail.example_inputs.values())).shape[1:]
    array = np.lib.format.open_memmap(path, "w+", np.float16, (count, *shape))
    pictures = training_pictures()
    crops = random_crops(pictures, count, PREPROCESS.crop, seed)
    groups = np.zeros(count, np.int64)
    for start in range(0, count, BATCH):
        progress(f"features of {len(pictures)} pictures", start, count)
        batch = [next(crops) for _ in range(min(BATCH, count - start))]
        groups[start : start + len(batch)] = [index for index, _ in batch]
        inputs = torch.cat([torch.from_numpy(normalize(np.asarray(crop), PREPROCESS)) for _, crop in batch])
        with torch.no_grad():
            values = crossing.join(flatten_outputs(head.graph(inputs)))
        array[start : start + len(batch)] = values.numpy()
    array.flush()
    np.save(groups_path, groups)
    facts_path.write_text(json.dumps(facts), encoding="utf-8")
    return FeatureSet(np.load(path, mmap_mode="r"), groups)


def told(step: str, done: int, total: int) -> None:
    if total and (done % 50 == 0 or done == total):
        click.echo(f"{step}: {done} of {total}")


@click.command(help=__doc__)
@click.option("--cut", default="blocks.14", show_default=True)
@click.option("--crops", type=click.IntRange(100), default=12_000, show_default=True)
@click.option("--epochs", type=click.IntRange(0), default=3, show_default=True)
@click.option("--patience", type=click.IntRange(1), default=3, show_default=True, help="Epochs without a better one.")
@click.option("--feature-epochs", type=click.IntRange(0), default=0, show_default=True)
@click.option("--adapter-rank", type=click.IntRange(1), default=8, show_default=True)
@click.option("--hidden", type=click.IntRange(0), help="Width of the learned blocks.")
@click.option("--finest", type=float, default=4e-3, show_default=True, help="Error of the finest rate's outputs.")
@click.option("--coarsest", type=float, default=0.5, show_default=True, help="Error of the coarsest rate's outputs.")
@click.option("--tail-drop", type=float, default=0.1, show_default=True)
@click.option("--rounding", type=float, default=0.45, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for features and states.")
@click.option("--output", type=click.Path(path_type=Path), help="The JSON file; its weights lie beside it.")
def main(
    cut: str,
    crops: int,
    epochs: int,
    patience: int,
    feature_epochs: int,
    adapter_rank: int,
    hidden: int | None,
    finest: float,
    coarsest: float,
    tail_drop: float,
    rounding: float,
    seed: int,
    threads: int,
    work: Path,
    output: Path | None,
) -> None:
    torch.set_num_threads(threads)
    model, _ = prepare(efficientnet_lite0(), silent)
    head, tail = split(model, [find_cut(model, cut)])
    data = features_of_crops(head, tail, work / "features", crops, seed, told)
    options = LearnedBottleneck(
        epochs=epochs,
        patience=patience,
        feature_epochs=feature_epochs,
        adapter_rank=adapter_rank,
        hidden=hidden,
        errors=(finest, coarsest),
        tail_drop=tail_drop,
        rounding=rounding,
        seed=seed,
    )
    trained = options.fit(head, tail, data, checkpoint=work, progress=told)
    name = next(iter(identity(head, tail)["crossing"]))
    path = output or CHECKPOINTS / f"bottleneck-efficientnet-lite0-{name}.json"
    command = shlex.join(["python", "-m", "samples.training.train_bottleneck_efficientnet", *sys.argv[1:]])
    save_trained(path, trained, head, tail, {"cut": cut, "command": command})
    click.echo(f"{path}: {path.with_suffix('.safetensors').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

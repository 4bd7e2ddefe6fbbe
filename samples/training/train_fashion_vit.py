"""Trains the small vision transformer (0.2 M parameters) on Fashion-MNIST.

python -m samples.training.train_fashion_vit -o fashion-vit.safetensors
"""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.zoo.fashion import FashionVit
from samples.training.trainer import Options, train


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True)
@click.option("--learning-rate", type=float, default=0.0015, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--resume", is_flag=True, help="Continue an interrupted run; the result is that of an unbroken one.")
def main(output: Path, epochs: int, batch: int, learning_rate: float, seed: int, threads: int, resume: bool) -> None:
    options = Options(
        output=output,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        weight_decay=0.02,
        seed=seed,
        threads=threads,
        resume=resume,
    )
    train(FashionVit, options)


if __name__ == "__main__":
    main()

"""The command line that every training on Fashion-MNIST has: its options become `Options`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from samples.training.trainer import Options

POSITIVE = click.IntRange(1)


def training_command(
    doc: str | None, *, epochs: int, batch: int, learning_rate: float, steps: int | None = None
) -> Callable[[Callable[[Options], object]], click.Command]:
    """Makes a command of what trains with `Options`; the numbers are the usual ones. With `steps`, training goes in
    rounds of so many batches and not in epochs of all images."""
    length = (
        (
            click.option("--epochs", type=POSITIVE, default=epochs, show_default=True),
            click.option("--batch", type=POSITIVE, default=batch, show_default=True),
        )
        if steps is None
        else (
            click.option("--rounds", "epochs", type=POSITIVE, default=epochs, show_default=True, help="Validations."),
            click.option(
                "--steps", type=POSITIVE, default=steps, show_default=True, help=f"Batches of {batch}, a round."
            ),
        )
    )
    options = (
        click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True),
        *length,
        click.option("--learning-rate", type=float, default=learning_rate, show_default=True),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--threads", type=POSITIVE, default=1, show_default=True),
        click.option(
            "--resume", is_flag=True, help="Continue an interrupted run; the result is that of an unbroken one."
        ),
    )

    def of(train: Callable[[Options], object]) -> click.Command:
        def main(**given: Any) -> None:
            chosen = Options(**{"batch": batch, "weight_decay": 0.02, **given})
            torch.set_num_threads(chosen.threads)
            torch.manual_seed(chosen.seed)
            train(chosen)

        for option in reversed(options):
            main = option(main)
        return click.command(help=doc)(main)

    return of

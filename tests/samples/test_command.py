"""One command line for every training: what is given becomes its Options, and the rest is the script's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from samples.training.command import training_command
from samples.training.trainer import Options


@pytest.fixture(autouse=True)
def _threads():
    """The command sets them for its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def options_of(steps: int | None, *words: str) -> Options:
    found: list[Options] = []
    command = training_command("Trains.", epochs=3, batch=48, learning_rate=0.5, steps=steps)(found.append)
    done = CliRunner().invoke(command, ["-o", "net.safetensors", *words])
    assert done.exit_code == 0, done.output
    return found[0]


def test_epochs_and_batches_of_all_images() -> None:
    assert options_of(None) == Options(Path("net.safetensors"), 3, 48, 0.5, 0.02)
    chosen = options_of(None, "--epochs", "9", "--batch", "8", "--learning-rate", "0.1", "--seed", "4", "--resume")
    assert chosen == Options(Path("net.safetensors"), 9, 8, 0.1, 0.02, seed=4, resume=True)


def test_rounds_of_so_many_batches() -> None:
    assert options_of(300) == Options(Path("net.safetensors"), 3, 48, 0.5, 0.02, steps=300)
    assert options_of(300, "--rounds", "1", "--steps", "2") == Options(
        Path("net.safetensors"), 1, 48, 0.5, 0.02, steps=2
    )


def test_an_option_of_the_other_kind_is_unknown() -> None:
    for steps, word in ((None, "--rounds"), (300, "--batch")):
        command = training_command("Trains.", epochs=3, batch=48, learning_rate=0.5, steps=steps)(print)
        assert CliRunner().invoke(command, ["-o", "net.safetensors", word, "2"]).exit_code == 2


def test_the_seed_is_set_before_the_module_is_made() -> None:
    drawn: list[float] = []
    command = training_command("Trains.", epochs=1, batch=8, learning_rate=0.1)(
        lambda options: drawn.append(float(torch.rand(())))
    )
    for seed in ("5", "5", "6"):
        CliRunner().invoke(command, ["-o", "net.safetensors", "--seed", seed])
    assert drawn[0] == drawn[1] != drawn[2]

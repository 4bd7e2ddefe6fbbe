"""Trains the byte-level language model (0.47 M parameters) on the docstrings of Python's standard library.

python -m samples.training.train_docstring_lm -o docstring-lm.safetensors

The text is read as `batch` streams side by side; each step goes on where the one before ended, its state carried over
(truncated backpropagation through time, Williams and Peng 1990).
"""

from __future__ import annotations

import json
import math
import platform
import shlex
import sys
import time
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from edgekit.zoo.docstring_lm import EMBEDDED, END, WIDTH, ByteModel
from samples.docstrings import docstrings

HELD_OUT_EVERY = 20


class Unrolled(nn.Module):
    """`model` over whole sequences: its own weights, run by `nn.GRU`."""

    def __init__(self, model: ByteModel, dropout: float) -> None:
        super().__init__()
        self.model, self.dropout = model, nn.Dropout(dropout)
        self.recurrent = nn.GRU(EMBEDDED, model.from_state.in_features, batch_first=True)
        self.recurrent.weight_ih_l0, self.recurrent.bias_ih_l0 = model.from_input.weight, model.from_input.bias
        self.recurrent.weight_hh_l0, self.recurrent.bias_hh_l0 = model.from_state.weight, model.from_state.bias

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """int64 [N, T] and [1, N, W] -> logits [N, T, 256] and the last state."""
        hidden, last = self.recurrent(self.model.embedding(tokens), state)
        return self.model.head(self.dropout(hidden)), last


def streams(texts: list[str], count: int) -> Tensor:
    """uint8 [count, T]: the texts one behind the other, END between them, cut into `count` streams."""
    joined = b"".join(bytes([END]) + text.encode() for text in texts) + bytes([END])
    length = len(joined) // count
    return torch.from_numpy(np.frombuffer(joined, np.uint8)[: count * length].reshape(count, length).copy())


def train(net: Unrolled, text: Tensor, *, epochs: int, window: int, learning_rate: float) -> None:
    steps = (text.shape[1] - 1) // window
    optimizer = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * steps, pct_start=0.1, cycle_momentum=False
    )
    for epoch in range(epochs):
        net.train()
        state, total = None, 0.0
        for step in range(steps):
            piece = text[:, step * window : (step + 1) * window + 1].long()
            logits, last = net(piece[:, :-1], state)
            state = last.detach()
            loss = functional.cross_entropy(logits.flatten(0, 1), piece[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: {total / steps / math.log(2):.3f} bits a byte", flush=True)


@torch.no_grad()
def bits_per_byte(net: Unrolled, text: Tensor) -> float:
    """uint8 [N, T], each row from an empty state."""
    net.eval()
    logits, _ = net(text[:, :-1].long())
    loss = functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].long().flatten())
    return loss.item() / math.log(2)


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=48, show_default=True)
@click.option("--window", type=click.IntRange(1), default=96, show_default=True)
@click.option("--learning-rate", type=float, default=0.004, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(output: Path, epochs: int, batch: int, window: int, learning_rate: float, seed: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    texts = docstrings()
    kept = [text for index, text in enumerate(texts) if index % HELD_OUT_EVERY]
    # Neighbours come from one file: the order of the streams must not be that of the alphabet.
    np.random.default_rng(seed).shuffle(kept)
    model = ByteModel()
    net, begin = Unrolled(model, dropout=0.1), time.perf_counter()
    train(net, streams(kept, batch), epochs=epochs, window=window, learning_rate=learning_rate)
    seconds = time.perf_counter() - begin
    # What is published is what is judged: the weights in half precision.
    model.half().float()
    held = streams(texts[::HELD_OUT_EVERY], 32)
    sidecar = {
        "held_out_bits_per_byte": round(bits_per_byte(net, held), 3),
        "held_out_bytes": held.numel(),
        "trained_bytes": sum(len(text.encode()) + 1 for text in kept),
        "parameters": sum(value.numel() for value in model.parameters()),
        "width": WIDTH,
        "epochs": epochs,
        "training_seconds": round(seconds),
        "threads": threads,
        "torch": torch.__version__,
        "text": f"docstrings of the standard library of Python {platform.python_version()}",
        "text_license": "Python Software Foundation License 2.0",
        "command": shlex.join(["python", "-m", "samples.training.train_docstring_lm", *sys.argv[1:]]),
    }
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, output)
    output.with_suffix(".json").write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(sidecar, indent=2))


if __name__ == "__main__":
    main()

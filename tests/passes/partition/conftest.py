"""Small models of every shape that a cut meets, and random ones."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgekit.model import Model
from edgekit.passes.base import Pipeline
from edgekit.passes.capture import Capture
from edgekit.passes.fold import FoldBatchNorm


class LongSkips(nn.Module):
    """A U-Net in small: what the first layers make is read by the last."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 8, 3, padding=1)
        self.down2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.down3 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.join1 = nn.Conv2d(32, 16, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join2 = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        first = torch.relu_(self.down1(image))
        second = torch.relu(self.down2(first))
        third = torch.relu(self.down3(second))
        up = torch.relu(self.join1(torch.cat([self.up1(third), second], 1)))
        return self.join2(torch.cat([self.up2(up), first], 1))


class TwoInTwoOut(nn.Module):
    """The second input is read late, and the first output is ready early."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.token = nn.Linear(8, 16), nn.Embedding(20, 16)
        self.exit, self.mix, self.out = nn.Linear(16, 2), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, image: Tensor, token: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.image(image))
        early = self.exit(hidden)
        hidden = torch.relu(self.mix(hidden)) + self.token(token).mean(1)
        return {"early": early, "late": self.out(torch.tanh(hidden))}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.memory, self.out = nn.Linear(6, 12), nn.LSTM(12, 10, batch_first=True), nn.Linear(10, 4)

    def forward(self, signal: Tensor) -> Tensor:
        steps, (last, _) = self.memory(torch.relu(self.lift(signal)))
        return self.out(steps[:, -1]) + self.out(last[-1])


class Sized(nn.Module):
    """Masks and positions are made of the input's length, which the tail still asks for when only a mean is left."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.mix, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.place = nn.Embedding(128, 8)

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.mix(torch.relu(self.lift(words))) + self.place(torch.arange(words.shape[1]))
        mask = torch.ones(hidden.shape[1], hidden.shape[1]).tril()
        weights = torch.softmax(torch.bmm(hidden, hidden.transpose(1, 2)) + (mask - 1) * 1e4, -1)
        return self.out(torch.relu(torch.bmm(weights, hidden)).mean(1)) * words.shape[1]


class Windowed(nn.Module):
    """Inside, the batch is 16 times as long: a size that no file can tie to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.mix, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, words: Tensor) -> Tensor:
        hidden = torch.relu(self.mix(torch.relu(self.lift(words)).reshape(-1, 8)))
        return self.out(hidden).reshape(words.shape[0], -1, 8).mean(1)


class Shared(nn.Module):
    """One layer three times."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.out = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, row: Tensor) -> Tensor:
        return self.out(self.same(torch.relu(self.same(torch.relu(self.same(row))))))


class WritesThroughViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, row: Tensor) -> Tensor:
        board = torch.zeros(row.shape[0], 4, 8)
        board[:, 0] = self.one(row)
        board[:, 1] = torch.relu(self.two(row))
        hidden = self.two(board)
        hidden[:, 0].mul_(2.0)
        return self.one(hidden).sum(1)


class Tangle(nn.Module):
    """Each layer adds up the results of random earlier ones; some write over their input."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        dice = random.Random(seed)
        count = dice.randint(3, 8)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(count))
        self.reads = [sorted({dice.randrange(index + 1) for _ in range(dice.randint(1, 3))}) for index in range(count)]
        self.kinds = [dice.choice(("relu", "relu_", "tanh", "none", "pair")) for _ in range(count)]
        self.second_output = dice.random() < 0.5

    def forward(self, row: Tensor) -> tuple[Tensor, ...]:
        values = [row]
        for layer, reads, kind in zip(self.layers, self.reads, self.kinds, strict=True):
            total = values[reads[0]]
            for read in reads[1:]:
                total = total + values[read]
            value = layer(total)
            if kind == "pair":
                left, right = value.chunk(2, dim=-1)
                value = torch.cat([right, left * 2], -1)
            elif kind != "none":
                value = getattr(torch, kind)(value)
            values.append(value)
        rest = torch.stack(values[1:]).sum(0)
        return (rest, values[1]) if self.second_output else (rest,)


def capture(module: nn.Module, inputs: dict[str, Tensor], dynamic: dict[str, dict[int, str]] | None = None) -> Model:
    """Captured and folded, with five samples for calibration and three held out, each with a label."""

    def samples(count: int) -> tuple[dict[str, Tensor], ...]:
        made = [
            {k: torch.randn_like(v) if v.is_floating_point() else torch.randint_like(v, 20) for k, v in inputs.items()}
            for _ in range(count)
        ]
        return tuple(made)

    model = Model(
        "small",
        module.eval(),
        inputs,
        dynamic=dynamic or {},
        calibration=samples(5),
        held_out=samples(3),
        labels=(0, 1, 0),
    )
    return Pipeline([Capture(), FoldBatchNorm()])(model)


BATCH = {0: "batch"}
SMALL: dict[str, Callable[[], Model]] = {
    "long skips": lambda: capture(LongSkips(), {"image": torch.randn(1, 3, 16, 16)}, {"image": BATCH}),
    "two in, two out": lambda: capture(
        TwoInTwoOut(),
        {"image": torch.randn(1, 8), "token": torch.randint(0, 20, (1, 5))},
        {"image": BATCH, "token": {0: "batch", 1: "length"}},
    ),
    "recurrent": lambda: capture(Recurrent(), {"signal": torch.randn(1, 7, 6)}, {"signal": BATCH}),
    "sized": lambda: capture(Sized(), {"words": torch.randn(1, 16, 4)}, {"words": {0: "batch", 1: "length"}}),
    "windowed": lambda: capture(Windowed(), {"words": torch.randn(1, 16, 4)}, {"words": BATCH}),
    "shared weights": lambda: capture(Shared(), {"row": torch.randn(1, 8)}, {"row": BATCH}),
    "writes through views": lambda: capture(WritesThroughViews(), {"row": torch.randn(1, 8)}, {"row": BATCH}),
    "fixed batch": lambda: capture(LongSkips(), {"image": torch.randn(2, 3, 16, 16)}),
}


@pytest.fixture(scope="session")
def small() -> Callable[[str], Model]:
    """The captured Model of a name in SMALL, made once."""
    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            torch.manual_seed(0)
            made[name] = SMALL[name]()
        return made[name]

    return get


@pytest.fixture(scope="session")
def tangle() -> Callable[[int], Model]:
    def get(seed: int) -> Model:
        torch.manual_seed(seed)
        return capture(Tangle(seed), {"row": torch.randn(1, 6)}, {"row": BATCH})

    return get


@pytest.fixture(scope="session")
def fashion() -> Model:
    from edgekit.sources import resolve

    model = resolve("fashion-cnn", calibration_samples=8)
    kept = model.evolve_quietly(held_out=model.held_out[:8], labels=model.labels[:8])
    return Pipeline([Capture(), FoldBatchNorm()])(kept)

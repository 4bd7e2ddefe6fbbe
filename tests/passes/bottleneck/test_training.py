"""The training loop: exact resume, early stopping, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import DataError, NumericsError
from edgekit.passes.bottleneck.training import Schedule, train
from edgekit.unfinished_training import FACTS, STATE


class Line:
    """A line fitted to points; noise on the inputs makes every step depend on the random numbers."""

    name = "line"

    def __init__(self, count: int = 40, scores: list[float] | None = None, noise: float = 0.1) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(2, 1)
        self.inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
        self.wanted = self.inputs @ torch.tensor([[1.0], [-2.0]])
        self.scores = None if scores is None else list(scores)
        self.begun: list[int] = []
        self.noise = noise

    @property
    def count(self) -> int:
        return len(self.inputs)

    def facts(self) -> dict[str, Any]:
        return {"noise": self.noise}

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.module.weight]}, {"params": [self.module.bias], "scale": 0.1}]

    def begin_epoch(self, epoch: int) -> None:
        self.begun.append(epoch)

    def loss(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        noise = self.noise * torch.randn(len(chosen), 2, generator=generator)
        loss: Tensor = (self.module(self.inputs[chosen] + noise) - self.wanted[chosen]).square().mean()
        return loss

    def validate(self) -> float:
        if self.scores is not None:
            return self.scores.pop(0)
        with torch.no_grad():
            return float((self.module(self.inputs) - self.wanted).square().mean())


class InterruptionError(Exception):
    pass


def _stop_at(step: int) -> Any:
    def progress(name: str, done: int, total: int) -> None:
        if done == step:
            raise InterruptionError

    return progress


SCHEDULE = Schedule(epochs=4, batch=8, learning_rate=0.1, warmup=3)


def test_training_comes_nearer_to_what_is_wanted() -> None:
    line = Line()
    before = line.validate()
    run = train(line, SCHEDULE)

    assert run.best < 0.5 * before and line.validate() == run.best


@pytest.mark.parametrize("step", [3, 5, 12, 19], ids=["first epoch", "its end", "middle", "last step"])
def test_interrupted_training_ends_at_the_weights_of_an_unbroken_one(step: int, tmp_path: Path) -> None:
    unbroken = Line()
    expected = train(unbroken, SCHEDULE, checkpoint=tmp_path / "unbroken")

    with pytest.raises(InterruptionError):
        train(Line(), SCHEDULE, checkpoint=tmp_path / "broken", progress=_stop_at(step))
    resumed = Line()
    run = train(resumed, SCHEDULE, checkpoint=tmp_path / "broken")

    assert run == expected
    for name, value in unbroken.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], value)


def test_an_interruption_costs_no_more_than_its_epoch(tmp_path: Path) -> None:
    with pytest.raises(InterruptionError):
        train(Line(), SCHEDULE, checkpoint=tmp_path, progress=_stop_at(12))
    resumed = Line()
    train(resumed, SCHEDULE, checkpoint=tmp_path)

    assert resumed.begun == [2, 3]


def test_finished_training_is_not_done_again(tmp_path: Path) -> None:
    first = Line()
    train(first, SCHEDULE, checkpoint=tmp_path)
    again = Line()
    train(again, SCHEDULE, checkpoint=tmp_path)

    assert again.begun == [] and torch.equal(again.module.weight, first.module.weight)


def test_training_stops_early_and_keeps_the_best_weights(tmp_path: Path) -> None:
    weights = []
    line = Line(scores=[5.0, 3.0, 4.0, 4.0, 9.0])
    line.begin_epoch = lambda epoch: weights.append(line.module.weight.detach().clone())  # type: ignore[method-assign]
    run = train(line, Schedule(epochs=10, batch=8, learning_rate=0.1, patience=2), checkpoint=tmp_path)

    assert run.epoch == 3 and run.best_epoch == 1 and run.best == 3.0
    assert torch.equal(line.module.weight, weights[1])


def test_training_that_makes_it_worse_leaves_the_weights_of_the_start() -> None:
    line = Line(scores=[1.0, 2.0, 3.0])
    before = line.module.weight.detach().clone()
    run = train(line, Schedule(epochs=5, batch=8, patience=2))

    assert run.best_epoch == 0 and torch.equal(line.module.weight, before)


def test_fewer_samples_than_a_batch_are_trained_on_all_at_once() -> None:
    line = Line(count=3)
    before = line.validate()
    train(line, Schedule(epochs=20, batch=64, learning_rate=0.1, patience=20))

    assert line.validate() < before


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        train(Line(count=0), SCHEDULE)


def test_state_of_other_options_is_refused(tmp_path: Path) -> None:
    train(Line(), SCHEDULE, checkpoint=tmp_path)
    with pytest.raises(DataError, match="with other options"):
        train(Line(), Schedule(epochs=5, batch=8, learning_rate=0.1, warmup=3), checkpoint=tmp_path)
    with pytest.raises(DataError, match="with other options"):
        train(Line(noise=0.2), SCHEDULE, checkpoint=tmp_path)


@pytest.mark.parametrize("damage", ["state", "facts"])
def test_damaged_state_is_told_and_how_to_go_on(damage: str, tmp_path: Path) -> None:
    train(Line(), SCHEDULE, checkpoint=tmp_path)
    path = next(tmp_path.glob(f"*-{STATE}")) if damage == "state" else tmp_path / FACTS
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="does not read") as caught:
        train(Line(), SCHEDULE, checkpoint=tmp_path)

    assert "remove the folder" in caught.value.hint


def test_one_state_is_kept(tmp_path: Path) -> None:
    train(Line(), SCHEDULE, checkpoint=tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [f"4-{STATE}", FACTS]


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    line = Line()
    line.wanted[:] = math.nan
    with pytest.raises(NumericsError, match="NaN or infinite"):
        train(line, SCHEDULE)

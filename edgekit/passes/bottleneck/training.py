"""The training loop of learned bottlenecks: seeded by epoch, checkpointed, resumed to the very same weights.

After each epoch the weights, the optimizer's state and the best weights so far are written as safetensors, with a
JSON file beside them. Whatever is random in an epoch follows from (seed, epoch), so a run that is interrupted within
one begins that epoch again and ends where an unbroken run ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgekit.errors import DataError, NumericsError
from edgekit.progress import Progress, silent
from edgekit.unfinished_training import TrainingStore, digest_facts


@dataclass(frozen=True)
class Schedule:
    """`learning_rate` rises for `warmup` steps and falls as a cosine to zero. `patience`: epochs without a better
    validation before training ends."""

    epochs: int = 8
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 100
    patience: int = 4
    seed: int = 0
    clip: float = 5.0


class Objective(Protocol):
    """What is trained. `loss` is called once per batch, `validate` once per epoch: lower is better."""

    name: str

    @property
    def module(self) -> nn.Module: ...

    @property
    def count(self) -> int:
        """Training samples."""

    def facts(self) -> dict[str, Any]:
        """What makes its loss, in JSON's types: a run of other facts is another run."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups; `scale` multiplies the learning rate."""

    def begin_epoch(self, epoch: int) -> None:
        """Before the first batch of an epoch; may depend on weights, seed and epoch alone."""

    def loss(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar, of the samples int64 [batch]; random numbers come from `generator`."""

    def validate(self) -> float: ...


@dataclass
class Run:
    """`history`: the validation of each epoch. `best_epoch` counts from 1; 0: none was better than at the start."""

    epoch: int = 0
    best: float = math.inf
    best_epoch: int = 0
    history: list[float] = field(default_factory=list)

    @property
    def stale(self) -> int:
        return self.epoch - self.best_epoch


def train(
    objective: Objective, schedule: Schedule, *, checkpoint: Path | None = None, progress: Progress = silent
) -> Run:
    """Trains `objective.module` in place and leaves the best weights in it.

    `checkpoint`: a folder; where it holds an unfinished run of the same schedule and module, that run goes on.
    Raises DataError for no samples or a checkpoint of another run, NumericsError where the loss is not finite.
    """
    if objective.count == 0:
        raise DataError("there is nothing to train on", hint="give a folder of typical images")
    batch = min(schedule.batch, objective.count)
    per_epoch = max(1, objective.count // batch)
    total = schedule.epochs * per_epoch
    optimizer = torch.optim.AdamW(
        [{**group, "lr": schedule.learning_rate * group.pop("scale", 1.0)} for group in objective.groups()],
        weight_decay=0.0,
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    run = Run()
    best = _copy(objective.module)
    store = None if checkpoint is None else TrainingStore(checkpoint, _identity(objective, schedule))
    if store is not None and store.exists:
        facts, best = store.load(objective.module, optimizer)
        run = Run(**facts)
    else:
        run.best = objective.validate()
    while run.epoch < schedule.epochs and run.stale < schedule.patience:
        objective.begin_epoch(run.epoch)
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + run.epoch)
        objective.module.train()
        for index, chosen in enumerate(_batches(objective.count, batch, generator)):
            step = run.epoch * per_epoch + index
            progress(f"train {objective.name}", step, total)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _factor(step, total, schedule.warmup)
            _step(objective, optimizer, chosen, generator, schedule.clip)
        objective.module.eval()
        score = objective.validate()
        run.epoch += 1
        run.history.append(score)
        if score < run.best:
            run.best, run.best_epoch, best = score, run.epoch, _copy(objective.module)
        if store is not None:
            store.save(run.epoch, asdict(run), objective.module, optimizer, best)
    progress(f"train {objective.name}", total, total)
    objective.module.load_state_dict(best)
    objective.module.eval()
    return run


def _step(
    objective: Objective, optimizer: torch.optim.Optimizer, chosen: Tensor, generator: torch.Generator, clip: float
) -> None:
    loss = objective.loss(chosen, generator)
    if not torch.isfinite(loss):
        raise NumericsError("the training loss is NaN or infinite", hint="lower the learning rate")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def _batches(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Whole batches in a new order; what is left over waits for another epoch. Sorted: they may be read from disk."""
    order = torch.randperm(count, generator=generator)
    for start in range(0, max(count - batch, 0) + 1, batch):
        yield order[start : start + batch].sort().values


def _factor(step: int, total: int, warmup: int) -> float:
    rise = min(1.0, (step + 1) / max(1, min(warmup, total // 10)))
    return rise * 0.5 * (1 + math.cos(math.pi * step / total))


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _identity(objective: Objective, schedule: Schedule) -> str:
    """Of what makes a run: its schedule and loss, the shapes that it trains, and how many samples it has."""
    return digest_facts([objective.name, objective.count, objective.facts(), asdict(schedule)], objective.module)

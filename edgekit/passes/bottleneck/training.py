"""The training loop of learned bottlenecks: seeded by epoch, checkpointed, resumed to the very same weights.

After each epoch the weights, the optimizer's state and the best weights so far are written as safetensors, with a
JSON file beside them. Whatever is random in an epoch follows from (seed, epoch), so a run that is interrupted within
one begins that epoch again and ends where an unbroken run ends.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgekit.errors import DataError, NumericsError
from edgekit.progress import Progress, silent

STATE, FACTS = "training.safetensors", "training.json"


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
    store = None if checkpoint is None else _Store(checkpoint, _identity(objective, schedule))
    if store is not None and store.exists:
        run, best = store.load(objective.module, optimizer)
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
            store.save(run, objective.module, best, optimizer)
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
    shapes = {name: list(value.shape) for name, value in objective.module.state_dict().items()}
    facts = [objective.name, objective.count, objective.facts(), asdict(schedule), shapes]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Store:
    """The state of a run in a folder. Files are renamed into place: an interruption leaves the last whole state."""

    folder: Path
    identity: str

    @property
    def exists(self) -> bool:
        return (self.folder / FACTS).exists()

    def save(self, run: Run, module: nn.Module, best: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"module/{name}": value for name, value in _copy(module).items()}
        tensors |= {f"best/{name}": value for name, value in best.items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
        name = f"{run.epoch}-{STATE}"
        save_file({key: value.contiguous() for key, value in tensors.items()}, self.folder / name)
        facts = {"identity": self.identity, "state": name, **asdict(run)}
        scratch = self.folder / f"{FACTS}.partial"
        scratch.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        scratch.replace(self.folder / FACTS)
        for old in self.folder.glob(f"*-{STATE}"):
            if old.name != name:
                old.unlink()

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Run, dict[str, Tensor]]:
        """Raises DataError for a state of another run, or one that does not read."""
        try:
            facts = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
            if facts.pop("identity") != self.identity:
                raise DataError(
                    f"{self.folder} holds an unfinished training of another model or with other options",
                    hint="give the same options to go on, or another folder",
                )
            tensors = load_file(self.folder / Path(facts.pop("state")).name)
            parts: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimizer": {}}
            for name, value in tensors.items():
                kind, _, rest = name.partition("/")
                parts[kind][rest] = value
            module.load_state_dict(parts["module"])
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in parts["optimizer"].items():
                index, _, key = name.partition("/")
                state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            return Run(**facts), parts["best"]
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"the checkpoint in {self.folder} does not read: {error}", hint="remove the folder to begin anew"
            ) from error

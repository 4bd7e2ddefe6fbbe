"""Trains a classifier of Fashion-MNIST; an interrupted run continues to the same weights as an unbroken one.

The order of the images follows from (seed, epoch). Everything else that is random (augmentation, dropout) draws from
torch's one generator, whose state is saved beside weights, optimizer and schedule.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import DataError
from edgekit.zoo.fashion import normalize
from samples.data import FashionMnist, fashion_mnist

VALIDATION_IMAGES = 5000


@dataclass(frozen=True)
class Options:
    """`patience`: epochs without a better validation accuracy before training ends. `shift`: pixels, at random.
    `steps`: of an epoch, all without."""

    output: Path
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float = 0.05
    shift: int = 1
    warmup: float = 0.15
    patience: int = 6
    seed: int = 0
    threads: int = 1
    resume: bool = False
    steps: int | None = None


class Trainer:
    """One run. `state` (epoch, step, best accuracy and weights ...) is what `--resume` continues from."""

    def __init__(self, module: nn.Module, data: FashionMnist, options: Options) -> None:
        # Depthwise convolutions run a third faster with the channels last.
        self.module, self.options = module.to(memory_format=torch.channels_last), options
        split = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(options.seed))
        images, labels = torch.from_numpy(data.train)[split], torch.from_numpy(data.train_labels)[split]
        self.images, self.labels = images[VALIDATION_IMAGES:], labels[VALIDATION_IMAGES:]
        self.held_images, self.held_labels = images[:VALIDATION_IMAGES], labels[:VALIDATION_IMAGES]
        self.steps = min(len(self.images) // options.batch, options.steps or len(self.images))
        self.optimizer = torch.optim.AdamW(_groups(module, options.weight_decay), options.learning_rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            options.learning_rate,
            total_steps=options.epochs * self.steps,
            pct_start=options.warmup,
            cycle_momentum=False,
        )
        self.epoch = self.step = self.stale = 0
        self.best = 0.0
        self.seconds = 0.0
        self.best_weights: dict[str, Tensor] = {}

    @property
    def state_path(self) -> Path:
        return self.options.output.with_suffix(".training.pt")

    def save_state(self) -> None:
        settings = {key: str(value) for key, value in asdict(self.options).items() if key != "resume"}
        state = {
            "settings": settings,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": torch.get_rng_state(),
            "progress": [self.epoch, self.step, self.stale, self.best, self.seconds],
            "best_weights": self.best_weights,
        }
        scratch = self.state_path.with_suffix(".partial")
        torch.save(state, scratch)
        scratch.replace(self.state_path)

    def load_state(self) -> None:
        """Raises DataError where there is nothing to resume, or it was begun with other options."""
        if not self.state_path.exists():
            raise DataError(f"nothing to resume at {self.state_path}", hint="leave --resume away")
        state: dict[str, Any] = torch.load(self.state_path, weights_only=True)
        settings = {key: str(value) for key, value in asdict(self.options).items() if key != "resume"}
        changed = [key for key, value in settings.items() if state["settings"].get(key) != value]
        if changed:
            raise DataError(f"the run was begun with another {', '.join(changed)}", hint="give the same options")
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["generator"])
        self.epoch, self.step, self.stale, self.best, self.seconds = state["progress"]
        self.best_weights = state["best_weights"]

    def run(self, max_steps: int | None = None) -> None:
        """Trains to the end, or for `max_steps`. An interrupt saves the state first."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("training", total=self.options.epochs * self.steps)
            bar.update(task, completed=self.epoch * self.steps + self.step)
            try:
                while self.epoch < self.options.epochs and self.stale < self.options.patience:
                    order = self._order()
                    while self.step < self.steps:
                        if max_steps == 0:
                            return
                        self._step(order)
                        bar.advance(task)
                        max_steps = None if max_steps is None else max_steps - 1
                    self._end_epoch()
            finally:
                self.save_state()

    def _order(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.epoch)
        return torch.randperm(len(self.images), generator=generator)

    def _step(self, order: Tensor) -> None:
        begin = time.perf_counter()
        chosen = order[self.step * self.options.batch :][: self.options.batch]
        self.module.train()
        loss = self.loss(augment(normalize(self.images[chosen]), self.options.shift), self.labels[chosen])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.seconds += time.perf_counter() - begin

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """`images` [N, 1, H, W] as the net takes them."""
        smoothing = self.options.label_smoothing
        return functional.cross_entropy(self.module(images), labels, label_smoothing=smoothing)

    def score(self) -> float:
        """On the validation images; the weights that are kept have the best one."""
        return accuracy(self.module, self.held_images, self.held_labels)

    def _end_epoch(self) -> None:
        score = self.score()
        if score > self.best:
            self.best, self.stale = score, 0
            self.best_weights = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        else:
            self.stale += 1
        self.epoch, self.step = self.epoch + 1, 0
        self.save_state()
        print(f"epoch {self.epoch}: validation {score:.4f}, best {self.best:.4f}, {self.seconds:.0f} s", flush=True)


def augment(images: Tensor, shift: int) -> Tensor:
    """[N, 1, H, W], each mirrored with probability 1/2 and moved by up to `shift` pixels, the edge repeated."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (shift,) * 4, mode="replicate").squeeze(1)
    down, across = torch.randint(0, 2 * shift + 1, (2, count))
    rows = down[:, None] + torch.arange(height)
    columns = across[:, None] + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1, on uint8 images [N, 28, 28]."""
    module.eval()
    with torch.inference_mode():
        chunks = zip(images.split(500), labels.split(500), strict=True)
        right = sum(int((module(normalize(part)).argmax(1) == truth).sum()) for part, truth in chunks)
    return right / len(images)


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases, norms and embeddings are not decayed."""
    decayed = [value for value in module.parameters() if value.dim() >= 2 and value.shape[0] > 1]
    rest = [value for value in module.parameters() if value.dim() < 2 or value.shape[0] == 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def train(kind: type[nn.Module], options: Options) -> float:
    """Writes `options.output` (safetensors) and its .json; returns the accuracy on the 10,000 test images."""
    data = fashion_mnist()
    trainer = Trainer(kind(), data, options)
    module = finished(trainer)
    test = accuracy(module, torch.from_numpy(data.test), torch.from_numpy(data.test_labels))
    told = {
        "test_accuracy": round(test, 4),
        "test_images": len(data.test),
        "validation_accuracy": round(trainer.best, 4),
        "parameters": sum(value.numel() for value in module.parameters()),
        "epochs": trainer.epoch,
    }
    publish(trainer, module.state_dict(), told)
    return test


def finished(trainer: Trainer) -> nn.Module:
    """The module with the best weights of the whole run, of which some may be done."""
    if trainer.options.resume:
        trainer.load_state()
    trainer.run()
    trainer.module.load_state_dict(trainer.best_weights)
    return trainer.module


def publish(trainer: Trainer, state: Mapping[str, Tensor], told: Mapping[str, Any], *, half: bool = False) -> None:
    """Writes the weights (`half`: in half precision) and beside them a .json of what is `told` and how they were made;
    what the run would have continued from goes."""
    options = trainer.options
    weights = {name: value.half() if half and value.is_floating_point() else value for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in weights.items()}, options.output)
    given = [word for word in sys.argv[1:] if word != "--resume"]  # the result is that of an unbroken run
    sidecar = {
        **told,
        "training_seconds": round(trainer.seconds),
        "threads": options.threads,
        "torch": torch.__version__,
        "dataset": "Fashion-MNIST (Debian dataset-fashion-mnist)",
        "command": shlex.join(["python", "-m", f"samples.training.{Path(sys.argv[0]).stem}", *given]),
    }
    options.output.with_suffix(".json").write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
    trainer.state_path.unlink()
    print(json.dumps(sidecar, indent=2))

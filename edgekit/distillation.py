"""Recovery by distillation: a pruned student learns its float teacher's answers and inner states, from inputs alone.

The loop is resumable: its state is written now and then and when it is interrupted, and whatever is random in a step
follows from (seed, step). With `steps` given, a run that was interrupted ends in the very weights of an unbroken one;
with `minutes`, in those that the time left allows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.batches import PADDING_MASK, Batches
from edgekit.digests import digest_module
from edgekit.errors import DataError, NumericsError
from edgekit.model import Model, Sample, flatten_outputs, forward_arguments
from edgekit.progress import Progress, silent
from edgekit.unfinished_training import TrainingRun, TrainingStore, identify

SAVE_EVERY_S = 60.0
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Recovery:
    """How long and how a student is trained. `steps` replaces `minutes` where a run must be the same on any machine.

    `features`: the weight of the inner states beside the answers. The learning rate rises for a twentieth of the run
    and falls as a cosine to zero.
    """

    minutes: float = 10.0
    steps: int | None = None
    batch: int = 64
    learning_rate: float = 5e-4
    features: float = 1.0
    seed: int = 0
    clip: float = 1.0


@dataclass(frozen=True)
class Recovered:
    """`loss`: the mean over the last tenth of the steps. `cpu_s`: processor time, all threads, all resumed runs."""

    steps: int
    seconds: float
    cpu_s: float
    loss: float


Loss = Callable[[Sample, torch.Generator], Tensor]


def distill(
    teacher: Model,
    student: Model,
    samples: Sequence[Sample],
    recovery: Recovery,
    *,
    features: Sequence[tuple[str, str]] = (),
    trained: str = "",
    each_step: Callable[[float], None] | None = None,
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> Recovered:
    """Trains `student.module` in place; give a copy that nobody else has.

    `features`: modules of teacher and student, by path, whose outputs [N, ..., C] are matched. `trained`: the path of
    what is trained; all without. `checkpoint`: a folder; where it holds an unfinished run with the same options, that
    run goes on. Raises DataError for no samples or a checkpoint of another run, NumericsError for a loss that is not
    finite.
    """
    loss = Matching(teacher, student, features, recovery.features)
    parameters = [value for value in student.module.get_submodule(trained).parameters() if value.requires_grad]
    with loss:
        return train(
            student,
            [{"params": parameters}],
            loss,
            samples,
            recovery,
            checkpoint=checkpoint,
            progress=progress,
            name="recover",
            origin=digest_module(teacher.module),
            each_step=each_step,
        )


class Matching:
    """The distance of a student's answers and inner states from its teacher's; a context that watches both."""

    def __init__(self, teacher: Model, student: Model, features: Sequence[tuple[str, str]], weight: float) -> None:
        self.teacher, self.student, self.weight = teacher, student, weight
        self._pairs = tuple(features) if weight else ()
        self._seen: dict[tuple[str, int], Tensor] = {}
        self._hooks: list[Any] = []
        self._classifies = student.postprocess is not None and student.postprocess.kind == "classification"

    def __enter__(self) -> Matching:
        for index, paths in enumerate(self._pairs):
            for role, model, path in zip("ts", (self.teacher, self.student), paths, strict=True):
                keep = self._keeper(role, index)
                self._hooks.append(model.module.get_submodule(path).register_forward_hook(keep))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._seen.clear()

    def _keeper(self, role: str, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, given: Any, answer: Any) -> None:
            self._seen[role, index] = answer

        return keep

    def __call__(self, batch: Sample, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            wanted = _call(self.teacher.module.eval(), batch)
        got = _call(self.student.module, batch)
        pairs = [(w, g) for w, g in zip(wanted, got, strict=True) if w.is_floating_point()]
        total = torch.stack([self._answer(w, g) for w, g in pairs]).mean()
        if self._pairs:
            weights = batch.get(PADDING_MASK)
            found = [
                feature_distance(self._seen["t", index], self._seen["s", index], weights)
                for index in range(len(self._pairs))
            ]
            total = total + self.weight * torch.stack(found).mean()
        return total

    def _answer(self, wanted: Tensor, got: Tensor) -> Tensor:
        if self._classifies:
            return class_divergence(wanted, got)
        return (got - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)


def class_divergence(wanted: Tensor, got: Tensor) -> Tensor:
    """KL divergence of softened classes, logits [N, K] twice -> scalar (Hinton et al., arXiv:1503.02531, section 2)."""
    target = functional.log_softmax(wanted / TEMPERATURE, -1)
    own = functional.log_softmax(got / TEMPERATURE, -1)
    return TEMPERATURE**2 * functional.kl_div(own, target, log_target=True, reduction="batchmean")


def feature_distance(wanted: Tensor, got: Tensor, mask: Tensor | None = None) -> Tensor:
    """The squared error in units of each channel's variance: [N, T, C] twice, `mask` [N, T] with 0 for padding.

    Channels count alike: a few of a transformer's carry a hundred times the others' size.
    """
    weight = torch.ones(wanted.shape[:-1]) if mask is None else mask.to(wanted.dtype)
    weight = (weight / weight.sum()).unsqueeze(-1)
    around = tuple(range(wanted.dim() - 1))
    mean = (weight * wanted).sum(around)
    variance = (weight * (wanted - mean).square()).sum(around)
    error = (weight * (got - wanted).square()).sum(around)
    return (error / (variance + 1e-6)).mean()


def train(
    student: Model,
    groups: list[dict[str, Any]],
    loss: Loss,
    samples: Sequence[Sample],
    recovery: Recovery,
    *,
    name: str,
    origin: str = "",
    checkpoint: Path | None = None,
    progress: Progress = silent,
    each_step: Callable[[float], None] | None = None,
    extra: nn.Module | None = None,
) -> Recovered:
    """AdamW over `groups` (parameters of `student.module`, `scale` of the learning rate). `each_step` gets the share
    of the run that is behind; `extra` is state of its own, kept with the student's. `origin`: whose
    run it is, for its checkpoint. Raises as `distill`."""
    if not samples:
        raise DataError("there is nothing to recover from", hint="--train FILE|DIR of typical inputs, no labels needed")
    module = student.module
    kept = module if extra is None else nn.ModuleDict({"student": module, "extra": extra})
    wanted = {id(value) for group in groups for value in group["params"]}
    frozen = [value for value in module.parameters() if value.requires_grad and id(value) not in wanted]
    for value in frozen:
        value.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [{**group, "lr": recovery.learning_rate * group.pop("scale", 1.0)} for group in groups], weight_decay=0.0
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    run = TrainingRun()
    store = (
        None
        if checkpoint is None
        else TrainingStore(checkpoint, identify(name, origin, kept, samples, asdict(recovery)), "recovery")
    )
    if store is not None and store.exists:
        run = TrainingRun(**store.load(kept, optimizer)[0])
    batches = Batches(samples, student, recovery.batch, recovery.seed)
    clock, saved = _Clock(run), time.monotonic()
    whole = True
    module.train()
    try:
        while (behind := _behind(run, clock, recovery)) < 1:
            progress(name, round(1000 * behind), 1000)
            if each_step is not None:
                each_step(behind)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _factor(behind)
            batch, generator = batches.at(run.steps)
            distance = loss(batch, generator)
            if not torch.isfinite(distance):
                raise NumericsError("the training loss is NaN or infinite", hint="lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            distance.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], recovery.clip)
            whole = False
            optimizer.step()
            run.steps += 1
            run.loss = float(distance) if run.steps == 1 else run.loss + 0.02 * (float(distance) - run.loss)
            whole = True
            if store is not None and time.monotonic() - saved > SAVE_EVERY_S:
                clock.into(run)
                store.save(run.steps, asdict(run), kept, optimizer)
                saved = time.monotonic()
    finally:
        clock.into(run)
        if store is not None and whole:
            store.save(run.steps, asdict(run), kept, optimizer)
        module.eval()
        for value in frozen:
            value.requires_grad_(True)
    progress(name, 1000, 1000)
    return Recovered(run.steps, run.seconds, run.cpu_s, run.loss)


class _Clock:
    """Adds this process's time to what a resumed run had taken before."""

    def __init__(self, run: TrainingRun) -> None:
        self._before = run.seconds, run.cpu_s
        self._start = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        return self._before[0] + time.monotonic() - self._start[0]

    def into(self, run: TrainingRun) -> None:
        run.seconds, run.cpu_s = self.seconds, self._before[1] + time.process_time() - self._start[1]


def _behind(run: TrainingRun, clock: _Clock, recovery: Recovery) -> float:
    if recovery.steps is not None:
        return run.steps / recovery.steps if recovery.steps else 1.0
    return clock.seconds / (60 * recovery.minutes) if recovery.minutes else 1.0


def _factor(behind: float) -> float:
    return min(1.0, 0.02 + behind / 0.05) * 0.5 * (1 + math.cos(math.pi * behind))


def _call(module: nn.Module, batch: Sample) -> list[Tensor]:
    args, kwargs = forward_arguments(module, batch)
    return flatten_outputs(module(*args, **kwargs))

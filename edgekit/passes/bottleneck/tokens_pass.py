"""The pass: a Model whose encoder pools its tokens into k vectors behind one of its blocks, to save what follows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.data import Shape as DataShape
from edgekit.data import load_data
from edgekit.errors import DataError, UsageError
from edgekit.model import Model, Sample, flatten_outputs, forward_arguments
from edgekit.passes.base import Pass
from edgekit.passes.bottleneck.learning import FEWEST_SAMPLES
from edgekit.passes.bottleneck.losses import distances
from edgekit.passes.bottleneck.token_pooling import PooledStack, TokenPool, heads_for, segment_means
from edgekit.passes.bottleneck.training import Run, Schedule, train
from edgekit.passes.tokens.length import open_lengths
from edgekit.passes.tokens.schedule import Shape
from edgekit.passes.tokens.stack import ReducingStack
from edgekit.passes.tokens.statistics import watch
from edgekit.passes.transformer.families import find_encoder, with_stack
from edgekit.progress import Progress

MOST_SAMPLES = 60_000
CHUNK = 64
# A trained block knows its work: it moves slower than what is new.
BLOCK_SCALE = 0.2


@dataclass(frozen=True)
class PoolTokens(Pass):
    """`count`: vectors that are left, beside the class token and its like. `block`: so many blocks see all tokens, half
    of them for None.

    Trained by distillation without labels, the vectors and the blocks behind them: on `train` (a folder of pictures or
    arrays), else on the calibration samples; `epochs` 0 leaves the means of neighbouring tokens. `checkpoint`: a
    folder, from which an interrupted training goes on.
    """

    count: int = 16
    block: int | None = None
    train: Path | None = None
    epochs: int = 4
    patience: int = 3
    batch: int = 64
    learning_rate: float = 1e-3
    seed: int = 0
    checkpoint: Path | None = None

    def requires(self, model: Model) -> None:
        """Raises SourceError without a known encoder, UsageError for one that cannot be pooled as asked."""
        found = find_encoder(model.module, model.name)
        if found.family.takes_mask:
            raise UsageError(
                f"{model.name} is of the family {found.family.name}, whose padding or answers need every token; "
                "allowed encoders of pictures",
                hint="--prune-tokens merge knows padding and gives the tokens back",
            )
        if open_lengths(model):
            raise UsageError(f"{model.name} takes inputs of any length, and pooling has one", hint="FixLength() first")
        if isinstance(found.run, PooledStack | ReducingStack):
            raise UsageError(f"the tokens of {model.name} are fewer already", hint="pool or prune them, not both")
        block = self.behind(len(found.blocks))
        if not 1 <= block < len(found.blocks):
            raise UsageError(f"tokens pooled behind block {block}, allowed 1 to {len(found.blocks) - 1}")

    def behind(self, blocks: int) -> int:
        """How many of an encoder's `blocks` see all tokens."""
        return blocks // 2 if self.block is None else self.block

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        progress("count tokens", 0, 0)
        _, statistics = watch(model, (model.calibration or (model.example_inputs,))[:1])
        shape = statistics.shape
        content = shape.tokens - shape.protected
        if not 1 <= self.count < content:
            raise UsageError(f"tokens pooled to {self.count}, allowed 1 to {content - 1} of {content}")
        pooled = self._insert(model, shape)
        block = self.behind(shape.blocks)
        told = f"{shape.tokens} tokens to {shape.protected} + {self.count} behind block {block}"
        told += f", {self.flops(shape) / shape.flops():.2f} of the encoder's FLOPs"
        if self.epochs:
            run = self.fit(model, pooled, self._data(model), progress)
            told += f"; distilled for {run.epoch} epochs"
        return pooled, told

    def fit(self, model: Model, pooled: Model, inputs: Sample, progress: Progress) -> Run:
        """Trains what `apply` made, in place, on `inputs` [N, ...]. Raises DataError for fewer than 8."""
        count = len(next(iter(inputs.values())))
        if count < FEWEST_SAMPLES:
            raise DataError(f"{count} training samples, allowed {FEWEST_SAMPLES} and more", hint="give a folder")
        objective = PoolObjective.of(model, pooled, inputs, progress)
        schedule = Schedule(self.epochs, self.batch, self.learning_rate, patience=self.patience, seed=self.seed)
        return train(objective, schedule, checkpoint=self.checkpoint, progress=progress)

    def flops(self, shape: Shape) -> float:
        """Of the pooled encoder, one sample."""
        inner, block = shape.protected + self.count, self.behind(shape.blocks)
        below = replace(shape, attention=shape.attention[:block], feed_forward=shape.feed_forward[:block])
        above = replace(shape, tokens=inner, attention=shape.attention[block:], feed_forward=shape.feed_forward[block:])
        heads, width, length = heads_for(shape.width), shape.width, shape.tokens
        pooling = 2.0 * length * width * (width + self.count * heads + 2 * self.count) + 2.0 * self.count * width**2
        return below.flops() + pooling + above.flops()

    def _insert(self, model: Model, shape: Shape) -> Model:
        module = copy.deepcopy(model.module).eval().requires_grad_(False)
        found = find_encoder(module, model.name)
        block = self.behind(shape.blocks)
        mixing = torch.cat(
            [
                torch.zeros(self.count, shape.protected),
                segment_means(self.count, shape.tokens - shape.protected),
            ],
            1,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            pool = TokenPool(mixing, shape.width, heads_for(shape.width))
        pooled = model.evolve_quietly(
            module=with_stack(module, found, PooledStack(found.blocks, block, pool, shape.protected))
        )
        before, after = outputs_of(model, model.example_inputs), outputs_of(pooled, model.example_inputs)
        if [value.shape for value in before] != [value.shape for value in after]:
            raise UsageError(
                f"the answers of {model.name} change their shape with fewer tokens",
                hint="--prune-tokens merge gives the tokens back",
            )
        return pooled

    def _data(self, model: Model) -> Sample:
        samples: Sequence[Sample] = model.calibration
        if self.train is not None:
            shape = DataShape(model.example_inputs, model.dynamic, model.preprocess, model.tokenizer)
            samples = load_data(self.train, shape, calibration_limit=MOST_SAMPLES, held_out_limit=0).calibration
        if not samples:
            raise DataError(f"{model.name} has no calibration samples to train on", hint="train: a folder of pictures")
        return {name: torch.cat([sample[name] for sample in samples]) for name in model.example_inputs}


def outputs_of(model: Model, inputs: Sample) -> list[Tensor]:
    args, kwargs = forward_arguments(model.module, inputs)
    with torch.no_grad():
        return flatten_outputs(model.module(*args, **kwargs))


@dataclass
class PoolObjective:
    """The pooled model's answers, near to those of the model before: KL for classifiers, squared error for others."""

    module: nn.Module
    answer: Callable[[Sample], list[Tensor]]
    inputs: Sample
    teacher: list[Tensor]
    indices: Tensor
    held: Tensor
    classifies: bool
    name: str = "pooled"

    @classmethod
    def of(cls, model: Model, pooled: Model, inputs: Sample, progress: Progress) -> PoolObjective:
        """Every tenth sample is held out."""
        count = len(next(iter(inputs.values())))
        found = []
        for start in range(0, count, CHUNK):
            progress("answers of the teacher", start, count)
            found.append(outputs_of(model, {name: value[start : start + CHUNK] for name, value in inputs.items()}))
        stack = next(module for module in pooled.module.modules() if isinstance(module, PooledStack))

        def answer(sample: Sample) -> list[Tensor]:
            args, kwargs = forward_arguments(pooled.module, sample)
            return flatten_outputs(pooled.module(*args, **kwargs))

        order = torch.arange(count)
        held = order % 10 == 9 if count >= 10 else order == count - 1
        return cls(
            module=stack.trained().requires_grad_(True),
            answer=answer,
            inputs=inputs,
            teacher=[torch.cat(column) for column in zip(*found, strict=True)],
            indices=order[~held],
            held=order[held],
            classifies="classification" in model.task,
        )

    @property
    def count(self) -> int:
        return len(self.indices)

    def facts(self) -> dict[str, Any]:
        return {"inputs": {name: list(value.shape) for name, value in self.inputs.items()}}

    def groups(self) -> list[dict[str, Any]]:
        blocks = [value for name, value in self.module.named_parameters() if name.startswith("blocks.")]
        others = [value for name, value in self.module.named_parameters() if not name.startswith("blocks.")]
        return [{"params": others}, {"params": blocks, "scale": BLOCK_SCALE}]

    def begin_epoch(self, epoch: int) -> None:
        pass

    def loss(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        return self._distances(self.indices[chosen]).mean()

    @torch.no_grad()
    def validate(self) -> float:
        found = [self._distances(part) for part in torch.split(self.held, CHUNK)]
        return float(np.mean(torch.cat(found).double().numpy()))

    def _distances(self, chosen: Tensor) -> Tensor:
        student = self.answer({name: value[chosen] for name, value in self.inputs.items()})
        return distances("distillation", student, [value[chosen] for value in self.teacher], None, self.classifies)

"""The objective of a learned bottleneck: distortion and rate over the whole ladder, in per cent of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from edgekit.model import flatten_outputs
from edgekit.passes.bottleneck.coders import Coders
from edgekit.passes.bottleneck.coding import Decoder, Encoder
from edgekit.passes.bottleneck.crossing import Crossing
from edgekit.passes.bottleneck.features import FeatureSet
from edgekit.passes.bottleneck.losses import distances
from edgekit.passes.bottleneck.rate import bin_bits, quantize

YARDSTICK_SAMPLES, VALIDATION_SAMPLES, CHUNK = 256, 384, 64


@dataclass
class RateObjective:
    """Of a batch: the mean of D / D(step) + `rate_weight` R / R(step), whose gradient is that of log D + w log R.

    D(step) and R(step) are found on fixed samples when an epoch begins: fine steps cost a hundredth of the distortion
    of coarse ones, and would not be trained at all in a plain sum. `frozen_tail`: the first stage, which trains the
    coders alone on this graph's outputs; else `teacher` holds the unchanged tail's outputs for all samples.
    """

    name: str
    module: Coders
    crossing: Crossing
    data: FeatureSet
    teacher: list[Tensor] | None
    indices: np.ndarray
    held: np.ndarray
    steps: list[float]
    loss_name: str = "distillation"
    classifies: bool = True
    rate_weight: float = 1.5
    tail_drop: float = 0.1
    seed: int = 0
    frozen_tail: GraphModule | None = None
    yardstick: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        return len(self.indices)

    def facts(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "loss": self.loss_name,
            "rate_weight": self.rate_weight,
            "tail_drop": self.tail_drop,
            "seed": self.seed,
        }

    def groups(self) -> list[dict[str, Any]]:
        """The density learns faster, since it has to follow the encoder; the rotations learn slower, since a random
        walk of encoder and decoder away from each other's inverse is noise at every rate."""
        both = (cast(Encoder, self.module.encoder), cast(Decoder, self.module.decoder))
        groups: list[dict[str, Any]] = [
            {"params": [value for coder in both for value in coder.linear.parameters()], "scale": 0.1},
            {"params": list(self.module.rate.parameters()), "scale": 5.0},
        ]
        learned = [value for coder in both if coder.residual is not None for value in coder.residual.parameters()]
        if learned:
            groups.append({"params": learned})
        return groups if self.frozen_tail is not None else [*groups, {"params": list(self.module.tail.parameters())}]

    def begin_epoch(self, epoch: int) -> None:
        chosen = self.indices[: YARDSTICK_SAMPLES * max(1, len(self.indices) // YARDSTICK_SAMPLES)]
        chosen = chosen[:: max(1, len(chosen) // YARDSTICK_SAMPLES)]
        measured = [self.measure(chosen, step) for step in self.steps]
        self.yardstick = torch.tensor([d for d, _ in measured]), torch.tensor([r for _, r in measured])

    def loss(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        assert self.yardstick is not None
        samples = self.indices[chosen.numpy()]
        places = torch.rand(len(samples), generator=generator) * (len(self.steps) - 1)
        ratio = self.steps[-1] / self.steps[0] if len(self.steps) > 1 else 1.0
        step = self.steps[0] * ratio ** (places / max(1, len(self.steps) - 1))
        step = step.view(-1, *[1] * (self.crossing.rank - 1))
        values = self.module.encoder(*self.crossing.part(self.data.take(samples)))
        kept = self._kept(values, generator)
        noisy = values + (torch.rand(values.shape, generator=generator) - 0.5) * step
        cost = bin_bits(noisy, step, self.module.rate.log_scale.exp())
        bits = (cost * kept).flatten(1).sum(1)
        distortion = self._distortion(quantize(values, step) * kept, samples)
        bins = places.round().long()
        own, rate = self.yardstick
        floor = own.mean() * 0.05
        return (distortion / (own[bins] + floor) + self.rate_weight * bits / (rate[bins] + 8)).mean()

    def validate(self) -> float:
        """The mean over the ladder of log D + w log R, rounded as the codec rounds."""
        chosen = self.held[:: max(1, len(self.held) // VALIDATION_SAMPLES)]
        measured = [self.measure(chosen, step) for step in self.steps[:: max(1, len(self.steps) // 4)]]
        return sum(math.log(d + 1e-6) + self.rate_weight * math.log(r + 8) for d, r in measured) / len(measured)

    @torch.no_grad()
    def measure(self, samples: np.ndarray, step: float) -> tuple[float, float]:
        """Mean distortion and bits of `samples` at one step."""
        distortion = bits = 0.0
        for start in range(0, len(samples), CHUNK):
            part = samples[start : start + CHUNK]
            values = self.module.encoder(*self.crossing.part(self.data.take(part)))
            rounded = quantize(values, torch.tensor(step))
            cost = bin_bits(rounded, torch.tensor(step), self.module.rate.log_scale.exp())
            bits += float(cost.sum())
            distortion += float(self._distortion(rounded, part).sum())
        return distortion / len(samples), bits / len(samples)

    def _kept(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """1 where a component stays, [B, ...]: some samples keep a random number of leading channels alone."""
        count = values.shape[self.crossing.axis]
        shortened = torch.rand(len(values), generator=generator) < self.tail_drop
        lengths = count ** torch.rand(len(values), generator=generator)
        lengths = torch.where(shortened, lengths, torch.full_like(lengths, count))
        shape = [1] * values.dim()
        shape[self.crossing.axis] = count
        ranks = torch.arange(count).view(shape)
        return (ranks < lengths.view(-1, *[1] * (values.dim() - 1))).to(values.dtype)

    def _distortion(self, components: Tensor, samples: np.ndarray) -> Tensor:
        labels = None if self.data.labels is None else torch.from_numpy(self.data.labels[samples])
        if self.frozen_tail is None:
            assert self.teacher is not None
            student, teacher = self.module.answer(components), [value[samples] for value in self.teacher]
            inputs = self.data.take(samples) if self.loss_name == "cauchy-schwarz" else None
            return distances(self.loss_name, student, teacher, labels, self.classifies, inputs)
        student = flatten_outputs(self.frozen_tail(*self.module.decoder(components)))
        with torch.no_grad():
            teacher = flatten_outputs(self.frozen_tail(*self.crossing.part(self.data.take(samples))))
        return distances("mse", student, teacher, labels, self.classifies)

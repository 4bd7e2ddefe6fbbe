"""The objective of a token bottleneck: every rung of its ladder in turn, distortion and rate in per cent of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from edgekit.passes.bottleneck.coders import Coders
from edgekit.passes.bottleneck.crossing import Crossing
from edgekit.passes.bottleneck.features import FeatureSet
from edgekit.passes.bottleneck.losses import distances
from edgekit.passes.bottleneck.rate import bin_bits, quantize
from edgekit.passes.bottleneck.tokens_coding import TokenDecoder, TokenEncoder
from edgekit.passes.bottleneck.tokens_ladder import Rung, kept

YARDSTICK_SAMPLES, VALIDATION_SAMPLES, CHUNK = 256, 512, 64
FLOOR_SHARE, FLOOR_BITS = 0.05, 8


@dataclass
class TokenObjective:
    """Each sample of a batch takes a rung at random, so that the first vectors carry what matters most and one training
    serves them all (nested dropout, Rippel et al., arXiv:1402.0915, section 3). The loss of a sample is its
    D / D(rung) + `rate_weight` R / R(rung); both yardsticks are measured when an epoch begins.

    `teacher`: the unchanged tail's outputs for all samples of `data`; `indices` are trained on, `held` judged by.
    """

    module: Coders
    crossing: Crossing
    data: FeatureSet
    teacher: list[Tensor]
    indices: np.ndarray
    held: np.ndarray
    ladder: tuple[Rung, ...]
    loss_name: str
    classifies: bool
    rate_weight: float
    name: str = "tokens"
    yardstick: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        return len(self.indices)

    def facts(self) -> dict[str, Any]:
        return {
            "ladder": [[rung.count, rung.step] for rung in self.ladder],
            "loss": self.loss_name,
            "rate_weight": self.rate_weight,
        }

    def groups(self) -> list[dict[str, Any]]:
        """What begins as a closed form moves slowly, the density follows fast."""
        encoder, decoder = cast(TokenEncoder, self.module.encoder), cast(TokenDecoder, self.module.decoder)
        closed = [encoder.pool.mixing, encoder.turn, encoder.shift, decoder.turn, decoder.mixing, decoder.mean]
        chosen = {id(value) for value in closed}
        learned = [value for coder in (encoder, decoder) for value in coder.parameters() if id(value) not in chosen]
        return [
            {"params": closed, "scale": 0.1},
            {"params": list(self.module.rate.parameters()), "scale": 5.0},
            {"params": [*learned, *self.module.tail.parameters()]},
        ]

    def begin_epoch(self, epoch: int) -> None:
        chosen = self.indices[:: max(1, len(self.indices) // YARDSTICK_SAMPLES)][:YARDSTICK_SAMPLES]
        measured = [self.measure(chosen, rung) for rung in self.ladder]
        self.yardstick = torch.tensor([d for d, _ in measured]), torch.tensor([r for _, r in measured])

    def loss(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        assert self.yardstick is not None
        samples = self.indices[chosen.numpy()]
        places = torch.randint(len(self.ladder), (len(samples),), generator=generator)
        step = torch.tensor([rung.step for rung in self.ladder])[places].view(-1, 1, 1)
        values = self.module.encoder(*self.crossing.part(self.data.take(samples)))
        mask = kept(values.shape[1], torch.tensor([rung.count for rung in self.ladder])[places])
        noisy = values + (torch.rand(values.shape, generator=generator) - 0.5) * step
        bits = (bin_bits(noisy, step, self.module.rate.log_scale.exp()) * mask).flatten(1).sum(1)
        distortion = self._distortion(quantize(values, step) * mask, samples)
        own, rate = self.yardstick
        floor = own.mean() * FLOOR_SHARE
        shares = distortion / (own[places] + floor) + self.rate_weight * bits / (rate[places] + FLOOR_BITS)
        return shares.mean()

    def validate(self) -> float:
        """The mean over the ladder of log D + w log R, rounded as the codec rounds."""
        chosen = self.held[:: max(1, len(self.held) // VALIDATION_SAMPLES)]
        measured = [self.measure(chosen, rung) for rung in self.ladder]
        total = sum(math.log(d + 1e-6) + self.rate_weight * math.log(r + FLOOR_BITS) for d, r in measured)
        return total / len(measured)

    @torch.no_grad()
    def measure(self, samples: np.ndarray, rung: Rung) -> tuple[float, float]:
        """Mean distortion and bits of `samples` at one rung."""
        distortion = bits = 0.0
        step = torch.tensor(rung.step)
        for start in range(0, len(samples), CHUNK):
            part = samples[start : start + CHUNK]
            rounded = quantize(rung.cut(self.module.encoder(*self.crossing.part(self.data.take(part)))), step)
            cost = bin_bits(rounded, step, self.module.rate.log_scale.exp())
            bits += float(cost[:, : rung.count].sum())
            distortion += float(self._distortion(rounded, part).sum())
        return distortion / len(samples), bits / len(samples)

    def _distortion(self, components: Tensor, samples: np.ndarray) -> Tensor:
        labels = None if self.data.labels is None else torch.from_numpy(self.data.labels[samples])
        teacher = [value[samples] for value in self.teacher]
        return distances(self.loss_name, self.module.answer(components), teacher, labels, self.classifies)

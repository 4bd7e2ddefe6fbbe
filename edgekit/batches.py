"""Samples in batches: in an order of their own each time through, of about one length, padding cut off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgekit.model import Model, Sample

# Batches of about one length waste no time on padding: so many are sorted together.
SORTED_BATCHES = 16
PADDING_MASK = "attention_mask"


class Batches:
    """Sample numbers in an order of their own each time through, batches of about one length, padding cut off."""

    def __init__(self, samples: Sequence[Sample], model: Model, size: int, seed: int) -> None:
        self._samples, self._seed = samples, seed
        self._size = min(size, len(samples))
        self._per_epoch = max(1, len(samples) // self._size)
        self._model = model
        trims = _trims(samples[0], model)
        self._lengths = torch.tensor([int(s[PADDING_MASK].sum()) for s in samples]) if trims else None
        self._epoch, self._order = -1, []  # type: tuple[int, list[Tensor]]

    def at(self, step: int) -> tuple[Sample, torch.Generator]:
        """The batch of `step`, and the generator of what else is random in it."""
        epoch, place = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        chosen = [self._samples[int(index)] for index in self._order[place]]
        return _batch(chosen, self._model), torch.Generator().manual_seed(self._seed * 1_000_003 + step)

    def _shuffled(self, epoch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._samples), generator=generator)
        if self._lengths is None:
            return list(self._cut(order))
        groups = torch.split(order, SORTED_BATCHES * self._size)
        whole = torch.cat([group[self._lengths[group].argsort(stable=True)] for group in groups])
        batches = list(self._cut(whole))
        return [batches[int(i)] for i in torch.randperm(len(batches), generator=generator)]

    def _cut(self, order: Tensor) -> Iterator[Tensor]:
        for place in range(self._per_epoch):
            yield order[place * self._size : (place + 1) * self._size]


def stacked(samples: Sequence[Sample], model: Model, size: int = 32) -> list[Sample]:
    """In batches where the Model's batch is open, padding cut off where its length is."""
    open_batch = all(0 in model.dynamic.get(name, {}) for name in model.example_inputs)
    shapes = {tuple(value.shape for value in sample.values()) for sample in samples}
    size = size if open_batch and len(shapes) == 1 else 1
    return [_batch(samples[start : start + size], model) for start in range(0, len(samples), size)]


def _batch(chosen: Sequence[Sample], model: Model) -> Sample:
    batch = {name: torch.cat([sample[name] for sample in chosen]) for name in chosen[0]}
    if not _trims(chosen[0], model):
        return batch
    longest = max(1, int(batch[PADDING_MASK].sum(1).max()))
    return {name: value[:, :longest] for name, value in batch.items()}


def _trims(sample: Sample, model: Model) -> bool:
    return PADDING_MASK in sample and all(1 in model.dynamic.get(name, {}) for name in sample)

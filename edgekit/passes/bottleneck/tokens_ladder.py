"""The ladder of a token bottleneck: so many leading vectors, at a step, at each rate; and the codec's tables for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.passes.bottleneck.tokens_coding import TOKEN_MODE
from edgekit.runtimes.codecs.transform_tables import fit_transform_tables


@dataclass(frozen=True)
class Rung:
    """The first `count` vectors cross, rounded to multiples of `step`."""

    count: int
    step: float

    def cut(self, components: Tensor) -> Tensor:
        """[N, K, C] with zeros for the vectors that stay behind."""
        return components * kept(components.shape[TOKEN_MODE], torch.tensor([self.count]))


def check_counts(counts: Sequence[int], length: int) -> None:
    """Raises UsageError for numbers of vectors that `length` tokens cannot be pooled to."""
    if not counts or list(counts) != sorted(set(counts), reverse=True) or not 1 <= counts[-1] <= counts[0] <= length:
        raise UsageError(
            f"counts of vectors are {list(counts)}, allowed 1 to {length} (as many as tokens), descending",
            hint="(16, 8, 4, 2, 1) serves most models",
        )


def rungs(counts: Sequence[int], steps: Sequence[float]) -> tuple[Rung, ...]:
    """`steps`, finest first, dealt to `counts`, most first, as evenly as they can be: both fall down the ladder."""
    return tuple(Rung(counts[index * len(counts) // len(steps)], step) for index, step in enumerate(steps))


def kept(count: int, lengths: Tensor) -> Tensor:
    """float32 [N, count, 1]: 1 for the first `lengths` [N] of `count` vectors."""
    return (torch.arange(count)[None, :] < lengths[:, None]).float().unsqueeze(2)


def token_tables(components: Tensor, ladder: Sequence[Rung], rounding: float) -> bytes:
    """Of the transform codec for components [N, K, C]: vectors stand where it drops whole channels, and each element
    of each vector has statistics of its own."""
    return fit_transform_tables(
        components.numpy(),
        [rung.step for rung in ladder],
        TOKEN_MODE,
        per_position=True,
        rounding=rounding,
        kept=[rung.count for rung in ladder],
    )

"""The pass: a Model whose encoder carries fewer tokens from block to block."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from edgekit.errors import UnknownNameError, UsageError
from edgekit.model import Model, flatten_outputs, forward_arguments
from edgekit.passes.base import Pass
from edgekit.passes.tokens.length import open_lengths
from edgekit.passes.tokens.reducers import Reducer
from edgekit.passes.tokens.schedule import by_mass, even, for_share, limited, tokens_for_mass
from edgekit.passes.tokens.stack import ReducingStack
from edgekit.passes.tokens.statistics import Statistics, watch
from edgekit.passes.transformer.families import PlainStack, find_encoder, with_stack
from edgekit.progress import Progress
from edgekit.registry import TOKEN_METHODS

WATCHED = 32


@dataclass(frozen=True)
class PruneTokens(Pass):
    """`method`: a name in edgekit.registry.TOKEN_METHODS. `flops`: the share of the encoder's FLOPs that is left, in
    (0, 1]. `schedule`: mass, from the attention mass of each block (ZipVL, arXiv:2410.08584), or even, the same number
    from each block. `keep`: tokens behind each block, protected ones counted; it wins over both."""

    method: str = "merge"
    flops: float = 0.7
    schedule: Literal["mass", "even"] = "even"
    keep: tuple[int, ...] | None = None

    def requires(self, model: Model) -> None:
        if self.method not in TOKEN_METHODS:
            raise UnknownNameError("token method", self.method, TOKEN_METHODS)
        if not 0 < self.flops <= 1:
            raise UsageError(f"flops is {self.flops}, allowed above 0 to 1", hint="0.7 leaves seven tenths")
        loose = open_lengths(model)
        if loose:
            told = ", ".join(f"{name} dimension {min(dims)}" for name, dims in loose.items())
            raise UsageError(
                f"{model.name} takes inputs of any length ({told}), and a graph with fewer tokens is static",
                hint="FixLength() gives it one length; edgekit export does so by itself, --length N chooses it",
            )
        run = find_encoder(model.module, model.name).run
        if run is not None and not isinstance(run, PlainStack):
            raise UsageError(
                f"the tokens of {model.name} are pruned already, or pooled", hint="ask once, for the share wanted"
            )

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        # The number of tokens follows from one sample: no length is open. The mass of attention wants more.
        watched = WATCHED if self.schedule == "mass" and self.keep is None else 1
        samples = (model.calibration or (model.example_inputs,))[:watched]
        progress("count tokens", 0, 0)
        _, statistics = watch(model, samples)
        reducer = TOKEN_METHODS.load(self.method)()
        keep = self.keep if self.keep is not None else self._find(statistics, reducer)
        statistics.shape.check(keep)
        pruned = self._insert(model, reducer, keep)
        share = statistics.shape.flops(keep) / statistics.shape.flops()
        told = f"{self.method}: {statistics.shape.tokens} tokens to {keep[-1]}, {share:.2f} of the encoder's FLOPs"
        return pruned, told

    def _find(self, statistics: Statistics, reducer: Reducer) -> tuple[int, ...]:
        shape = statistics.shape

        def even_schedule(removed: float) -> tuple[int, ...]:
            return limited(shape, even(shape, removed), reducer.fewest_share, shape.protected)

        def mass_schedule(lost: float) -> tuple[int, ...]:
            counts = [tokens_for_mass(rows, 1 - lost, shape.protected) for rows in statistics.received]
            return limited(shape, by_mass(shape, np.stack(counts, 1)), reducer.fewest_share, shape.protected)

        if self.flops == 1:
            return (shape.tokens,) * shape.blocks
        if self.schedule == "mass":
            return for_share(shape, self.flops, mass_schedule, 0.0, 1.0)
        return for_share(shape, self.flops, even_schedule, 0.0, float(shape.tokens))

    def _insert(self, model: Model, reducer: Reducer, keep: tuple[int, ...]) -> Model:
        """Restores all tokens at the end only where the answer needs them."""
        wanted = _shapes(model)
        for restores in (False, True):
            module = copy.deepcopy(model.module).eval()
            found = find_encoder(module, model.name)
            stack = ReducingStack(found.blocks, reducer, keep, found.protected, restores=restores)
            pruned = model.evolve_quietly(module=with_stack(module, found, stack))
            try:
                if _shapes(pruned) == wanted:
                    return pruned
            except (RuntimeError, IndexError):
                if restores:
                    raise
        raise UsageError(f"the answers of {model.name} change their shape with fewer tokens")


def _shapes(model: Model) -> list[torch.Size]:
    args, kwargs = forward_arguments(model.module, model.example_inputs)
    with torch.no_grad():
        return [value.shape for value in flatten_outputs(model.module(*args, **kwargs))]

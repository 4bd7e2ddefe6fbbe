"""Stages one after the other, with anything in between: what a split is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from edgekit.errors import InputError
from edgekit.model import Model

Value = TypeVar("Value")
Stage = Callable[[dict[str, Value]], Mapping[str, Value]]


def compose(stages: Sequence[Model], between: Callable[[int, Mapping], Mapping] | None = None) -> Callable:
    """sample -> outputs of the last stage, tensors by name, in torch.

    `between(index, values)` stands for the link above stage `index`: it gets what crosses and gives what arrives.
    Raises InputError where a stage does not get what it takes.
    """
    return chain([stage.forward for stage in stages], [tuple(stage.example_inputs) for stage in stages], between)


def chain(
    runs: Sequence[Stage[Value]],
    takes: Sequence[tuple[str, ...]],
    between: Callable[[int, Mapping[str, Value]], Mapping[str, Value]] | None = None,
) -> Callable[[Mapping[str, Value]], dict[str, Value]]:
    """The same over any way to run a stage (a session's `run` on arrays, say); `takes`: the input names of each."""

    def run(sample: Mapping[str, Value]) -> dict[str, Value]:
        values = sample
        for index, (stage, names) in enumerate(zip(runs, takes, strict=True)):
            if set(values) != set(names):
                raise InputError(
                    f"stage {index} gets {sorted(values)}, allowed {sorted(names)}",
                    hint="stages must come from one split, in its order",
                )
            values = stage({name: values[name] for name in names})
            if between is not None and index < len(runs) - 1:
                values = between(index, values)
        return dict(values)

    return run


def run_through(
    stages: Sequence[Model],
    samples: Sequence[Mapping],
    between: Callable[[int, Mapping], Mapping] | None = None,
) -> tuple[dict, ...]:
    """The answers to each sample, through all stages and whatever lies between them."""
    run = compose(stages, between)
    return tuple(run(sample) for sample in samples)

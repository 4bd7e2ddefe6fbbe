"""A cut through the captured graph, and the stages on either side of it as Models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """The values that cross: `crossing` are names of graph nodes, in graph order, whose values the stage above reads.

    `size_bytes` of those values in float32 for the example input; `head_flops` and `head_parameters` of everything
    below; `name` is what users write in --split (the last module path below the cut where it has one, such as
    "blocks.5"), unique in the model.
    """

    name: str
    crossing: tuple[str, ...]
    size_bytes: int
    head_flops: float
    head_parameters: int

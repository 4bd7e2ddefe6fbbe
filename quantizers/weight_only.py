"""Weights in 8 or 4 bits, activations and arithmetic in float: smaller files, less memory traffic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from edgekit.errors import SourceError, UsageError
from edgekit.model import Model
from edgekit.progress import Progress
from edgekit.quantization import Fallback, Quantization, WeightGrid
from edgekit.quantizers.anatomy import WeightedLayer, aten, layer_weight, replace_tensor, weighted_layers
from edgekit.quantizers.base import Quantizer
from edgekit.quantizers.grids import group_grid, on_grid, weight_grid


@dataclass(frozen=True)
class WeightOnly(Quantizer):
    """Linear layers. `group_size` neighbours along the inputs share a scale; None: one scale an output channel.

    A layer whose input width is no multiple of the group keeps one group a row in 8 bits, and its floats in 4.
    """

    group_size: int | None = None

    bits: ClassVar[int]

    def requires(self, model: Model) -> None:
        super().requires(model)
        if self.group_size is not None and (self.group_size < 8 or self.group_size % 8):
            raise UsageError(f"group size {self.group_size}, allowed multiples of 8", hint="32 and 128 are usual")

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        graph = model.copy_graph()
        keep = dict(self.keep)
        weights: dict[str, WeightGrid] = {}
        layers: list[str] = []
        candidates = [layer for layer in weighted_layers(graph) if layer.node.target is aten.linear.default]
        for layer in candidates:
            if layer.node.name in keep:
                continue
            weight = layer_weight(graph, layer)
            grid = weights.get(layer.weight) or self._grid(layer, weight.detach())
            if grid is None:
                keep[layer.node.name] = f"{weight.shape[1]} inputs are no multiple of group size {self.group_size}"
                continue
            if layer.weight not in weights:
                replace_tensor(graph, layer.weight, on_grid(weight, grid))
            weights[layer.weight] = grid
            layers.append(layer.node.name)
            progress("round weights", len(layers), len(candidates))
        if not layers:
            raise SourceError(f"{model.name} has no linear layer for {self.method}", hint="use --quantize int8 or fp16")
        fallbacks = tuple(Fallback(layer, "float32", why) for layer, why in keep.items())
        record = Quantization(self.method, self.scheme, weights, {}, tuple(layers), fallbacks)
        return replace(model, module=graph, quantization=record), f"{len(layers)} layers in {self.bits} bits"

    def _grid(self, layer: WeightedLayer, weight: Tensor) -> WeightGrid | None:
        if self.group_size is not None and weight.shape[1] % self.group_size == 0:
            return group_grid(weight, self.bits, self.group_size)
        return weight_grid(weight, layer.axis, self.scheme) if self.bits == 8 else None


@dataclass(frozen=True)
class WeightOnlyInt8(WeightOnly):
    method: ClassVar[str] = "int8-weight-only"
    bits: ClassVar[int] = 8


@dataclass(frozen=True)
class WeightOnlyInt4(WeightOnly):
    group_size: int | None = 32

    method: ClassVar[str] = "int4-weight-only"
    bits: ClassVar[int] = 4

"""Cross-layer equalization: channels between two layers are rescaled so that both weights use their grids well.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1. For a pair
of layers with ranges r1 (output channels of the first) and r2 (input channels of the second) the first is divided
and the second multiplied by s = r1 / sqrt(r1 r2). The pair computes the same function where what lies between them is
positively homogeneous: nothing, or a relu. A clip at 6 is not: its bound would have to become 6 / s, one for each
channel, which no integer kernel has. Such pairs are left alone. To rescale only as far as calibration data stay below
the clip is no way out: on EfficientNet-Lite0 that is exact on the calibration pictures (120 dB) and ruins the others
(4 dB), whose larger values reach the clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgekit.model import Model
from edgekit.passes.base import Pass
from edgekit.progress import Progress
from edgekit.quantizers.anatomy import (
    WeightedLayer,
    aten,
    clamp_bounds,
    layer_weight,
    replace_tensor,
    tensor_named,
    through_padding,
    weighted_layer,
    weighted_layers,
)
from edgekit.quantizers.placement import fused_end


@dataclass(frozen=True)
class EqualizeLayers(Pass):
    """Float-equivalent for every input: pairs with anything but a relu, or nothing, between them stay as they are."""

    rounds: int = 4
    largest_factor: float = 16.0

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        graph = model.copy_graph()
        pairs = find_pairs(graph)
        for done in range(self.rounds):
            for first, second in pairs:
                self._equalize(graph, first, second)
            progress("equalize", done + 1, self.rounds)
        return replace(model, module=graph), f"{len(pairs)} pairs of layers"

    def _equalize(self, graph: GraphModule, first: WeightedLayer, second: WeightedLayer) -> None:
        weight, following = layer_weight(graph, first), layer_weight(graph, second)
        ranges = weight.detach().abs().flatten(1).amax(1)
        factor = ranges / torch.sqrt(ranges * _input_ranges(second, following)).clamp_min(1e-12)
        factor = factor.clamp(1 / self.largest_factor, self.largest_factor)
        factor = torch.where(ranges > 0, factor, torch.ones_like(factor))
        replace_tensor(graph, first.weight, weight.detach() / _along(factor, weight, 0))
        if first.bias_node is not None:
            bias = str(first.bias_node.target)
            replace_tensor(graph, bias, tensor_named(graph, bias).detach() / factor)
        if second.groups > 1:
            factor_of = _along(factor, following, 0)
        else:
            factor_of = _along(factor, following, 1)
        replace_tensor(graph, second.weight, following.detach() * factor_of)


def find_pairs(graph: GraphModule) -> list[tuple[WeightedLayer, WeightedLayer]]:
    """Layers joined by one edge that carries the first's output channels unmixed to the second's inputs."""
    shared: dict[str, int] = {}
    for layer in weighted_layers(graph):
        shared[layer.weight] = shared.get(layer.weight, 0) + 1
    pairs = []
    for second in weighted_layers(graph):
        end = through_padding(second.source)
        maker = end.all_input_nodes[0] if clamp_bounds(end) is not None else end
        first = weighted_layer(maker)
        if first is None or fused_end(maker) is not end or len(end.users) != 1 or len(second.source.users) != 1:
            continue
        bounds = clamp_bounds(end) if end is not maker else (0.0, float("inf"))
        same_kind = first.is_convolution == second.is_convolution and first.axis == second.axis == 0
        if not same_kind or bounds != (0.0, float("inf")) or not _fits(graph, first, second):
            continue
        if shared[first.weight] == shared[second.weight] == 1:
            pairs.append((first, second))
    return pairs


def _fits(graph: GraphModule, first: WeightedLayer, second: WeightedLayer) -> bool:
    """Depthwise (one input channel a group) or ungrouped second layers, whose inputs are the first's outputs."""
    weight, following = layer_weight(graph, first), layer_weight(graph, second)
    if second.node.target is aten.linear.default:
        return following.shape[1] == weight.shape[0]
    if second.groups > 1:
        return following.shape[1] == 1 and following.shape[0] == weight.shape[0] == second.groups
    return following.shape[1] == weight.shape[0]


def _input_ranges(layer: WeightedLayer, weight: Tensor) -> Tensor:
    axis = 0 if layer.groups > 1 else 1
    return weight.detach().abs().transpose(0, axis).flatten(1).amax(1)


def _along(factor: Tensor, like: Tensor, axis: int) -> Tensor:
    return factor.reshape([-1 if dim == axis else 1 for dim in range(like.dim())])

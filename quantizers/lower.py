"""From the record to PT2E form: the one place where a Quantization becomes quantize and dequantize nodes.

    placeholder - Q - DQ ---------------+
                                        conv - (clamp) - Q - DQ - ...
    weight int8 - DQ per channel -------+
    bias float -------------------------+

A zero padding in front of a convolution stays between DQ and convolution: XNNPACK takes it in there, and so does
ONNX Runtime's padding fusion. Clamps that do what the quantizer's saturation does anyway are removed.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.errors import SourceError
from edgekit.model import Model
from edgekit.quantization import ActivationGrid, Quantization
from edgekit.quantizers.anatomy import (
    INTEGERS,
    WeightedLayer,
    add_tensor,
    aten,
    clamp_bounds,
    drop_unused_tensors,
    fused_source,
    layer_weight,
    reading_ends,
    weighted_layer,
)
from edgekit.quantizers.grids import quantize_weight

qd = torch.ops.quantized_decomposed


def to_pt2e(model: Model) -> GraphModule:
    """A new graph in PT2E form; `model.graph` is left as it was. Runs in torch and gives the integer path's numbers.

    Static (`activations` filled): every activation that a quantized layer reads or writes passes
    `quantize_per_tensor` -> `dequantize_per_tensor` (one dequantize a reader); float layers beside them read the
    float value where a float layer made it. Weights: int8 buffer + `dequantize_per_channel` (or `_per_tensor`).
    Bias stays float32: XNNPACK and ONNX Runtime make the int32 bias themselves, with scale = input scale x weight
    scale and zero point 0.

    Dynamic (method int8-dynamic): `choose_qparams.tensor` -> getitem 0 and 1 -> `quantize_per_tensor.tensor` ->
    `dequantize_per_tensor.tensor`, one chain a reader, asymmetric in int8: what XNNPACK's partitioner matches, which
    runs it per token. Weight-only: weights alone, 4 and 8 bits, by group as `dequantize_per_channel_group`
    (int8 buffer, 4-bit values in [-8, 7]).

    Raises SourceError where `model.quantization` is missing or half precision, which needs no lowering.
    """
    record = model.quantization
    if record is None or not record.weights:
        raise SourceError(
            f"{model.name} carries no integer weights to lower",
            hint="run an integer quantizer first; fp32 and fp16 graphs are exported as they are",
        )
    graph = model.copy_graph()
    Lowering(graph, record).run()
    return graph


@dataclass
class Lowering:
    """Rewrites `graph` in place; `to_pt2e` hands it a copy."""

    graph: GraphModule
    record: Quantization

    def run(self) -> None:
        layers = set(self.record.layers)
        nodes = [node for node in self.graph.graph.nodes if node.name in layers]
        if self.record.method == "int8-dynamic":
            for node in nodes:
                self._lower_dynamic(node)
        for node in nodes:
            layer = weighted_layer(node)
            if layer is not None and layer.weight in self.record.weights:
                self._lower_weight(layer)
        if self.record.activations:
            self._lower_activations(nodes)
        self.graph.graph.eliminate_dead_code()
        drop_unused_tensors(self.graph)
        self.graph.graph.lint()
        self.graph.recompile()

    def _lower_weight(self, layer: WeightedLayer) -> None:
        grid = self.record.weights[layer.weight]
        weight = layer_weight(self.graph, layer)
        quantized = quantize_weight(weight, grid)
        stored = add_tensor(self.graph, f"{layer.weight}_int8", quantized, layer.node)
        scale = grid.scale.to(torch.float32)
        target: Any
        args: tuple[Any, ...]
        limits = (-(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1)
        if grid.axis is None:
            target, args = qd.dequantize_per_tensor.default, (float(scale), int(grid.zero_point), -127, 127, torch.int8)
        else:
            scales = add_tensor(self.graph, f"{layer.weight}_scale", scale, layer.node)
            zeros = grid.zero_point.to(torch.int32 if grid.group_size else torch.int64)
            points = add_tensor(self.graph, f"{layer.weight}_zero_point", zeros, layer.node)
            if grid.group_size is not None:
                target = qd.dequantize_per_channel_group.default
                args = (scales, points, *limits, torch.int8, grid.group_size, torch.float32)
            else:
                target = qd.dequantize_per_channel.default
                args = (scales, points, grid.axis, -127, 127, torch.int8)
        with self.graph.graph.inserting_before(layer.node):
            restored = self.graph.graph.call_function(target, (stored, *args))
        restored.meta["val"] = weight
        layer.node.replace_input_with(layer.weight_node, restored)

    def _lower_activations(self, layers: list[Node]) -> None:
        """Each grid becomes one Q behind its node; each quantized reader gets a DQ of its own.

        What an integer kernel made exists as integers only, so its float readers get a DQ too; what a float node
        made is given to its float readers as it is.
        """
        quantized = set(layers)
        readers = {reader for node in layers for reader in reading_ends(node)}
        for node in list(self.graph.graph.nodes):
            grid = self.record.activations.get(node.name)
            if grid is None:
                continue
            made_in_integers = node in quantized or fused_source(node) in quantized
            users = [user for user in node.users if made_in_integers or user in readers]
            if users:
                self._round_trip(node, grid, users)
            if made_in_integers:
                self._relax_clamp(node, grid)

    def _round_trip(self, node: Node, grid: ActivationGrid, users: list[Node]) -> None:
        args = (grid.scale, grid.zero_point, grid.quant_min, grid.quant_max, INTEGERS[grid.dtype])
        with self.graph.graph.inserting_after(node):
            stored = self.graph.graph.call_function(qd.quantize_per_tensor.default, (node, *args))
        stored.meta["val"] = _like(node, INTEGERS[grid.dtype])
        stored = self._narrow(stored, grid)
        for user in users:
            with self.graph.graph.inserting_before(user):
                restored = self.graph.graph.call_function(qd.dequantize_per_tensor.default, (stored, *args))
            restored.meta["val"] = _like(node, torch.float32)
            user.replace_input_with(node, restored)

    def _narrow(self, stored: Node, grid: ActivationGrid) -> Node:
        """`stored`, saturated where the grid has fewer bits than its container: formats know the container's range."""
        container = torch.iinfo(INTEGERS[grid.dtype])
        if grid.quant_max == container.max:
            return stored
        stored.args = (*stored.args[:3], container.min, container.max, stored.args[5])
        with self.graph.graph.inserting_after(stored):
            narrow = self.graph.graph.call_function(aten.clamp.default, (stored, grid.quant_min, grid.quant_max))
        narrow.meta.update(stored.meta)
        return narrow

    def _relax_clamp(self, node: Node, grid: ActivationGrid) -> None:
        """Removes the clamp `node` where saturation gives the same integers, or leaves a plain relu of it."""
        bounds = clamp_bounds(node)
        if bounds is None:
            return
        source = node.all_input_nodes[0]
        low_saturates, high_saturates = saturates(grid, bounds)
        if low_saturates and high_saturates:
            node.replace_all_uses_with(source)
            self.graph.graph.erase_node(node)
        elif high_saturates and bounds[0] == 0.0 and bounds[1] != float("inf"):
            with self.graph.graph.inserting_before(node):
                relu = self.graph.graph.call_function(aten.relu.default, (source,))
            relu.meta.update(node.meta)
            node.replace_all_uses_with(relu)
            self.graph.graph.erase_node(node)

    def _lower_dynamic(self, node: Node) -> None:
        layer = weighted_layer(node)
        if layer is None:
            return
        limits = (-128, 127)
        calls = self.graph.graph.call_function
        with self.graph.graph.inserting_before(node):
            eps = torch.finfo(torch.float32).eps
            chosen = calls(qd.choose_qparams.tensor, (layer.source, *limits, eps, torch.int8))
            scale, point = (calls(operator.getitem, (chosen, index)) for index in (0, 1))
            args: tuple[Any, ...] = (scale, point, *limits, torch.int8)
            stored = calls(qd.quantize_per_tensor.tensor, (layer.source, *args))
            restored = calls(qd.dequantize_per_tensor.tensor, (stored, *args))
        restored.meta["val"] = layer.source.meta.get("val")
        node.replace_input_with(layer.source, restored)


def saturates(grid: ActivationGrid, bounds: tuple[float, float]) -> tuple[bool, bool]:
    """Whether the quantizer alone sends all that lies below / above the bounds where the clamp would send it."""
    low = bounds[0] == float("-inf") or round(bounds[0] / grid.scale) + grid.zero_point <= grid.quant_min
    high = bounds[1] == float("inf") or round(bounds[1] / grid.scale) + grid.zero_point >= grid.quant_max
    return low, high


def _like(node: Node, dtype: torch.dtype) -> Any:
    value = node.meta.get("val")
    return value.to(dtype) if isinstance(value, Tensor) else None

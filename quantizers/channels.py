"""Where the channels of a layer go: followed through moves, so that a layer far behind can be rescaled with it."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgekit.model import Model
from edgekit.quantizers.anatomy import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, aten, weighted_layer
from edgekit.quantizers.attention import attentions

# What puts values elsewhere and leaves each of them what it is.
MOVES = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.unbind.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.expand.default,
    aten.dropout.default,
    operator.getitem,
}
RELUS = {aten.relu.default, aten.relu_.default}
SCALINGS = {aten.mul.Tensor, aten.div.Tensor}


@dataclass(frozen=True)
class Traced:
    """`origin` made these values; `index`: int64, of the value's shape, which of its channels each one came from.

    `shifts`: adding a constant to a channel of the origin adds the same here. `scale` is what they were multiplied by.
    """

    origin: Node
    index: Any
    shifts: bool = True
    scale: float = 1.0


@dataclass
class ChannelTrace:
    """`found`: by node, where its values come from. `readers`: by origin, (reader, channels that it reads)."""

    found: dict[Node, Traced]
    readers: dict[Node, list[tuple[Node, frozenset[int]]]]

    def channels(self, node: Node, dim: int) -> tuple[Traced, Tensor] | None:
        """([C]: the origin's channel of each channel along `dim`), where it is one for all positions."""
        traced = self.found.get(node)
        if traced is None or not isinstance(traced.index, Tensor):
            return None
        moved = traced.index.movedim(dim, -1).reshape(-1, traced.index.shape[dim])
        if not bool((moved == moved[0]).all()) or len(set(moved[0].tolist())) != moved.shape[1]:
            return None
        return traced, moved[0]

    def read_by(self, origin: Node, channels: Tensor) -> set[Node]:
        """The nodes that read any of these channels as more than moves."""
        wanted = set(channels.tolist())
        return {reader for reader, read in self.readers.get(origin, []) if read & wanted}


def trace_channels(model: Model) -> ChannelTrace:
    """Follows linear layers, convolutions and layer norms of `model` through moves, relus, factors, and values through
    attention: a row of probabilities sums to one, so that a mixture of values keeps its channels."""
    tracer = _Tracer(model.graph)
    with torch.no_grad():
        tracer.run(*model.example_inputs.values())
    return ChannelTrace(tracer.found, tracer.readers)


class _Tracer(fx.Interpreter):
    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[Node, Traced] = {}
        self.readers: dict[Node, list[tuple[Node, frozenset[int]]]] = {}
        self.mixed = {one.mixed: one.value for one in attentions(graph)}
        for node in graph.graph.nodes:
            if node.target is aten.scaled_dot_product_attention.default and isinstance(node.args[2], Node):
                self.mixed[node] = node.args[2]

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        passed = self._passed(n, value)
        for source in n.all_input_nodes:
            traced = self.found.get(source)
            if traced is not None and (passed is None or traced.origin is not passed.origin):
                self.readers.setdefault(traced.origin, []).append((n, _channels(traced.index)))
        own = _origin_index(n, value)
        if own is not None:
            self.found[n] = Traced(n, own)
        elif passed is not None:
            self.found[n] = passed
        return value

    def _passed(self, node: Node, value: Any) -> Traced | None:
        """What of its first input's origin still stands in `node`."""
        if node in self.mixed:
            return self._mixture(self.found.get(self.mixed[node]), value)
        first = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        traced = None if first is None else self.found.get(first)
        if traced is None or node.op != "call_function":
            return None
        if node.target in MOVES:
            arguments = map_arg(node.args[1:], lambda one: self.env[one])
            move: Any = node.target
            return replace(traced, index=move(traced.index, *arguments, **node.kwargs))
        if node.target in RELUS:
            return Traced(traced.origin, traced.index, False, traced.scale)
        if node.target in SCALINGS and len(node.args) == 2 and isinstance(node.args[1], int | float):
            factor = float(node.args[1]) if node.target is aten.mul.Tensor else 1 / float(node.args[1])
            return Traced(traced.origin, traced.index, traced.shifts, traced.scale * factor)
        return None

    @staticmethod
    def _mixture(traced: Traced | None, value: Tensor) -> Traced | None:
        """[.., T, D] of values -> [.., N, D], where each channel comes from one for all tokens."""
        if traced is None or not isinstance(traced.index, Tensor) or traced.index.dim() != value.dim():
            return None
        first = traced.index.narrow(-2, 0, 1)
        if not bool((traced.index == first).all()):
            return None
        return Traced(traced.origin, first.expand(value.shape), traced.shifts, traced.scale)


def _origin_index(node: Node, value: Any) -> Tensor | None:
    if not isinstance(value, Tensor) or value.numel() == 0:
        return None
    layer = weighted_layer(node)
    if layer is not None and layer.axis is not None:
        dim = 1 if node.target in {*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS} else -1
    elif node.target is aten.layer_norm.default and len(node.args[1]) == 1:  # type: ignore[arg-type]
        dim = -1
    else:
        return None
    shape = [1] * value.dim()
    shape[dim] = value.shape[dim]
    return torch.arange(value.shape[dim]).view(shape).expand(value.shape)


def _channels(index: Any) -> frozenset[int]:
    parts = [index] if isinstance(index, Tensor) else list(index)
    return frozenset(int(one) for part in parts for one in part.unique())

"""Which nodes run in integers, and which of their values need a grid."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.quantization import ActivationGrid, Scheme
from edgekit.quantizers.anatomy import (
    ELEMENTWISE,
    MOVERS,
    REDUCTIONS,
    aten,
    clamp_bounds,
    fused_source,
    layer_mflops,
    normalises_by_layer,
    reading_ends,
    through_padding,
    weighted_layer,
    weighted_layers,
)
from edgekit.quantizers.calibration import Statistics
from edgekit.quantizers.observers import Observer

# For a value that calibration only saw at zero: fine enough that saturation still does the work of a ReLU6.
DEAD_SCALE = 2.0**-7
# Of all the work of the layers: what the convolutions that make tokens may be to stay float.
STEM_SHARE = 0.1
STEM = "it writes into a stream of floats, which 8 bits do not hold"


@dataclass
class Placement:
    """`layers`: nodes that run quantized, in graph order. `family`: node name -> the name that stands for its grid.

    Names of one family share one grid: the ends of a concatenation, and what only moves values about.
    `stems`: convolutions that stay float, see `place`. `signed`: names whose grid is int8 around zero in every scheme.
    """

    layers: list[str] = field(default_factory=list)
    family: dict[str, str] = field(default_factory=dict)
    stems: tuple[str, ...] = ()
    signed: set[str] = field(default_factory=set)

    def join(self, name: str, other: str) -> None:
        self.family.setdefault(name, name)
        self.family.setdefault(other, other)
        old, new = self.family[name], self.family[other]
        for member, head in self.family.items():
            if head == old:
                self.family[member] = new


def place(graph: GraphModule, scheme: Scheme, keep: set[str], elementwise: bool | None = None) -> Placement:
    """Convolutions and products with a stored weight, and what lies between them where `elementwise` (add, mul, cat,
    pooling, moves). None: not in networks that normalise by layer: their residual streams carry outliers that 8 bits
    do not hold. There the convolutions that make the tokens stay float as well, where they are little work: an integer
    convolution writes 8 bits, and all that follows is built on them. In DINOv2 that is a third of the whole error.
    """
    if elementwise is None:
        elementwise = not normalises_by_layer(graph)
    placement, integers = Placement(stems=() if elementwise else _stems(graph, keep)), set[Node]()
    for node in graph.graph.nodes:
        if node.name in keep or node.name in placement.stems or node.op != "call_function" or not _makes_floats(node):
            continue
        layer = weighted_layer(node)
        if layer is not None and _makes_floats(layer.weight_node):
            source = through_padding(layer.source)
            placement.family.setdefault(source.name, source.name)
        elif not (elementwise and _follows(node, integers, placement)):
            continue
        placement.layers.append(node.name)
        end = fused_end(node)
        integers.update((node, end))
        if layer is None or layer.is_convolution or not scheme.float_outputs:
            placement.family.setdefault(end.name, end.name)
    if scheme.float_outputs:
        _free_outputs(graph, placement)
    return placement


def fused_end(node: Node) -> Node:
    """The clamp that the kernel of `node` applies itself, or `node`."""
    users = list(node.users)
    if len(users) == 1 and fused_source(users[0]) is node and clamp_bounds(users[0]) is not None:
        return users[0]
    return node


def activation_grid(low: float, high: float, scheme: Scheme) -> ActivationGrid:
    """The scheme's grid over [low, high], widened to hold zero exactly."""
    quant_min, quant_max = scheme.activation_range
    low, high = min(low, 0.0), max(high, 0.0)
    if scheme.symmetric_activations:
        scale = max(-low, high) / quant_max
        point = 0
    else:
        scale = (high - low) / (quant_max - quant_min)
        point = 0
    if scale < 1e-12:
        scale, point = DEAD_SCALE, 0 if scheme.symmetric_activations else quant_min
    elif not scheme.symmetric_activations:
        point = min(max(quant_min - round(low / scale), quant_min), quant_max)
    # What the file formats store is float32: the grid must be that number too.
    return ActivationGrid(float(_float32(scale)), point, scheme.activation_dtype, quant_min, quant_max)


def grids(
    placement: Placement, statistics: Statistics, observer: Observer, scheme: Scheme
) -> dict[str, ActivationGrid]:
    """A grid by node name; a family's range is the union of its members' ranges."""
    quant_min, quant_max = scheme.activation_range
    ranges: dict[str, tuple[float, float]] = {}
    for name, head in placement.family.items():
        seen = statistics.seen.get(name)
        if seen is None:
            continue
        low, high = observer.range_of(seen, quant_max - quant_min, scheme.symmetric_activations)
        known = ranges.get(head, (0.0, 0.0))
        ranges[head] = min(known[0], low), max(known[1], high)
    signed = replace(scheme, activation_dtype="int8", symmetric_activations=True)
    return {
        name: activation_grid(*ranges[head], signed if name in placement.signed else scheme)
        for name, head in placement.family.items()
        if head in ranges
    }


def _follows(node: Node, integers: set[Node], placement: Placement) -> bool:
    """Whether every input of `node` is already there as integers; joins families where values only move."""
    sources = node.all_input_nodes
    if not sources or any(source not in integers for source in sources):
        return False
    if node.target in MOVERS:
        placement.join(node.name, sources[0].name)
    elif node.target is aten.cat.default:
        for source in sources:
            placement.join(source.name, node.name)
    elif node.target in ELEMENTWISE:
        return len(sources) == 2 and "alpha" not in node.kwargs and _same_rank(*sources)
    else:
        return node.target in REDUCTIONS
    return True


def _stems(graph: GraphModule, keep: set[str]) -> tuple[str, ...]:
    """The convolutions whose output no layer reads as integers; () where they are more than STEM_SHARE of the work."""
    layers = weighted_layers(graph)
    readers = {end for layer in layers for end in reading_ends(layer.node)}
    stems = [
        layer
        for layer in layers
        if layer.is_convolution
        and layer.node.name not in keep
        and not readers.intersection(fused_end(layer.node).users)
    ]
    work = {layer.node: layer_mflops(graph, layer) for layer in layers}
    if sum(work[layer.node] for layer in stems) > STEM_SHARE * sum(work.values()):
        return ()
    return tuple(layer.node.name for layer in stems)


def _free_outputs(graph: GraphModule, placement: Placement) -> None:
    """No grid where nothing but the model's output reads a value."""
    shared = [placement.family[name] for name in placement.family]
    for node in graph.graph.nodes:
        alone = node.name in placement.family and shared.count(placement.family[node.name]) == 1
        if alone and weighted_layer(node) is not None and all(user.op == "output" for user in node.users):
            del placement.family[node.name]


def _makes_floats(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _same_rank(left: Node, right: Node) -> bool:
    return bool(left.meta["val"].dim() == right.meta["val"].dim())


def _float32(value: float) -> float:
    return float(np.float32(value))

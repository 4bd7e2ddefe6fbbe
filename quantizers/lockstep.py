"""The float network and its quantized twin, walked node by node on the same samples, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgekit.model import Sample
from edgekit.quantization import ActivationGrid, Quantization
from edgekit.quantizers.anatomy import argument, aten, attribute_named, fused_source, reading_ends

# What picks rows, or one among many, by their values.
WITH_INDICES = {aten.topk.default, aten.max.dim, aten.min.dim, aten.sort.default}
INDICES_ALONE = {aten.argmax.default, aten.argmin.default, aten.argsort.default}

Values = list[Any]


@dataclass(frozen=True)
class Pair:
    """What `node` gives: `exact` from the float network, `rounded` from the quantized one, one entry a sample."""

    node: Node
    exact: Values
    rounded: Values


Visitor = Callable[[Node, Values, Values], None]


def walk(
    exact: GraphModule,
    rounded: GraphModule,
    record: Quantization,
    samples: Sequence[Sample],
    before: Visitor | None = None,
    same_picks: bool = True,
) -> Iterator[Pair]:
    """Yields each node of `rounded` once it has been run in both graphs, in order; values live until their last use.

    `before(node, exact sources, rounded sources)` sees each quantized layer's first input before it runs and may put
    other weights into `rounded`. The values are those of the graph that `to_pt2e` makes.

    `same_picks`: where rows are picked by their values (pruned or merged tokens) the rounded graph takes those that the
    float one takes, so that the rows of both are those of the same tokens and compare. Left to itself it picks others
    now and then, and what a single layer costs drowns in that.
    """
    twins = {node.name: node for node in exact.graph.nodes}
    nodes = list(rounded.graph.nodes)
    layers = set(record.layers)
    integer_nodes = {node for node in nodes if node.name in layers}
    readers = {end for node in integer_nodes for end in reading_ends(node)}
    last_use = {source: node for node in nodes for source in node.all_input_nodes}
    ends: dict[Node, list[Node]] = {}
    for source, node in last_use.items():
        ends.setdefault(node, []).append(source)
    floats: dict[Node, Values] = {}
    values: dict[Node, Values] = {}
    on_grid: dict[Node, Values] = {}
    for node in nodes:
        if node.op == "output":
            break
        if node.name in layers and before is not None:
            source = _first_source(node)
            before(node, floats[source], (on_grid if node in readers else values).get(source, values[source]))
        over = ends.get(node, [])
        twin = twins.get(node.name, node)
        if node.name not in twins and _is_cast(node):  # fp16 put it in: the float network stays as it is
            floats[node] = list(floats[node.all_input_nodes[0]])
        else:
            floats[node] = _run(exact, twin, node, floats, floats, samples, over)
        picked = floats[node] if same_picks and node.target in WITH_INDICES | INDICES_ALONE else None
        values[node] = _run(rounded, node, node, values, on_grid if node in readers else values, samples, over, picked)
        grid = record.activations.get(node.name)
        if grid is not None:
            on_grid[node] = [fake_quantize(value, grid) for value in values[node]]
            if node in integer_nodes or fused_source(node) in integer_nodes:
                values[node] = on_grid[node]
        yield Pair(node, floats[node], values[node])
        for source in over:
            for store in (floats, values, on_grid):
                store.pop(source, None)


def fake_quantize(value: Tensor, grid: ActivationGrid) -> Tensor:
    """`value` after a trip to the integers of `grid` and back; float32."""
    inverse = 1.0 / grid.scale
    steps = torch.round(value * inverse) + grid.zero_point
    return (steps.clamp_(grid.quant_min, grid.quant_max) - grid.zero_point) * grid.scale


def _picked_alike(node: Node, value: Any, picked: Any) -> Any:
    """What `node` gives of `value` where it takes the indices in `picked`, its result for another value."""
    if node.target in INDICES_ALONE:
        return picked
    indices = picked[1]
    dim = int(argument(node, 2 if node.target is aten.topk.default else 1, "dim", -1))
    if indices.dim() == value.dim():
        return value.gather(dim, indices), indices
    return value.gather(dim, indices.unsqueeze(dim)).squeeze(dim), indices


def _is_cast(node: Node) -> bool:
    return node.op == "call_function" and node.target is torch.ops.aten.to.dtype


def _first_source(node: Node) -> Node:
    return next(source for source in node.all_input_nodes if source.op != "get_attr")


def _run(
    graph: GraphModule,
    twin: Node,
    node: Node,
    values: dict[Node, Values],
    preferred: dict[Node, Values],
    samples: Sequence[Sample],
    over: Sequence[Node],
    picked: Values | None = None,
) -> Values:
    """`twin` (its own dtypes too), with its inputs looked up under the names of `node`'s inputs; those in `over` are
    forgotten, one sample after the other, so that inputs and outputs are never in memory together. `picked`: what the
    node gave elsewhere, whose indices it is to take."""
    count = len(samples)
    if node.op == "placeholder":
        position = [n for n in node.graph.nodes if n.op == "placeholder"].index(node)
        return [list(sample.values())[position] for sample in samples]
    if node.op == "get_attr":
        return []
    call = graph.get_submodule(str(twin.target)) if node.op == "call_module" else twin.target
    source_of = dict(zip(twin.all_input_nodes, node.all_input_nodes, strict=True))
    attributes = {
        source.name: attribute_named(graph, str(same.target))
        for same, source in source_of.items()
        if source.op == "get_attr"
    }
    results = []
    for index in range(count):

        def look_up(same: Node, index: int = index) -> Any:
            source = source_of[same]
            if source.op == "get_attr":  # read late: `before` may just have changed it
                return attributes[source.name]
            return preferred.get(source, values[source])[index]

        args, kwargs = map_arg(twin.args, look_up), map_arg(twin.kwargs, look_up)
        with torch.no_grad():
            if picked is None:
                results.append(call(*args, **kwargs))  # type: ignore[operator]
            else:
                results.append(_picked_alike(twin, args[0], picked[index]))
        for store in (values, preferred):
            for source in over:
                if store.get(source):
                    store[source][index] = None
    return results

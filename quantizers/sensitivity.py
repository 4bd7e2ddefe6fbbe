"""Where quantization hurts: the error behind each layer, what each layer alone costs, which layers to keep in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.model import Model, Sample
from edgekit.progress import Progress, silent
from edgekit.quantization import Quantization
from edgekit.quantizers.anatomy import (
    WeightedLayer,
    layer_mflops,
    replace_tensor,
    tensor_named,
    through_padding,
    weighted_layers,
)
from edgekit.quantizers.lockstep import walk
from edgekit.quantizers.smoothing import smoothed_like
from edgekit.report.metrics import sqnr_db


@dataclass(frozen=True)
class Sensitivity:
    """`sqnr_db` of the model's outputs with this layer (or these of this name) alone quantized; `mflops` of one
    inference of it."""

    layer: str
    sqnr_db: float
    mflops: float


def layer_sqnr(float_model: Model, quantized_model: Model, samples: int = 8) -> list[tuple[str, float]]:
    """(layer, dB) for each quantized node, in the order in which they run, on held-out data where there is some.

    Both graphs have to be of one origin: nodes are matched by name. Where tokens are picked by their values both take
    the same ones, see `lockstep.walk`.
    """
    record = quantized_model.quantization
    if record is None or not record.layers:
        return []
    inputs = _judged(quantized_model)[:samples]
    float_model = smoothed_like(float_model, quantized_model.graph)
    layers = set(record.layers)
    rows: list[tuple[str, float]] = []
    for pair in walk(float_model.graph, quantized_model.graph, record, inputs):
        if pair.node.name in layers and isinstance(pair.exact[0], torch.Tensor):
            wanted = np.concatenate([value.numpy().ravel() for value in pair.exact])
            got = np.concatenate([value.numpy().ravel() for value in pair.rounded])
            rows.append((pair.node.name, sqnr_db(wanted, got)))
    return rows


def simulate(model: Model, samples: Sequence[Sample]) -> list[np.ndarray]:
    """The outputs of the quantized Model, one flat array a sample, as its integer path gives them."""
    record = model.quantization
    assert record is not None
    return _outputs(model.graph, model.graph, record, samples, same_picks=False)


def sensitivities(
    model: Model,
    quantized: Model,
    samples: int = 4,
    progress: Progress = silent,
    together: Mapping[str, Sequence[str]] | None = None,
) -> list[Sensitivity]:
    """What each weighted layer costs alone, most expensive first (lowest dB).

    `model` is the float graph that `quantized` was made of (batch norms folded); each layer in turn gets its rounded
    weight and its input grid, the others stay float. `together`: name -> layers that are rounded at once instead; a
    name without quantized layers has no row. Tokens are picked as the float graph picks them, see
    `lockstep.walk`: what other picks cost is no single layer's, and only the gate sees it.
    """
    record = quantized.quantization
    assert record is not None
    model = smoothed_like(model, quantized.graph)
    inputs = (model.calibration or _judged(model))[:samples]
    wanted = np.concatenate(_outputs(model.graph, model.graph, Quantization("none", record.scheme), inputs))
    rows = []
    rounded = {layer.node.name: layer for layer in weighted_layers(model.graph) if layer.node.name in record.layers}
    parts = together if together is not None else {name: (name,) for name in rounded}
    for done, (name, names) in enumerate(parts.items()):
        layers = [rounded[one] for one in names if one in rounded]
        if layers:
            graph, alone = _rounded_alone(model, quantized, record, layers)
            got = np.concatenate(_outputs(model.graph, graph, alone, inputs))
            rows.append(Sensitivity(name, sqnr_db(wanted, got), sum(layer_mflops(model.graph, one) for one in layers)))
        progress("measure sensitivity", done + 1, len(parts))
    return sorted(rows, key=lambda row: row.sqnr_db)


def _rounded_alone(
    model: Model, quantized: Model, record: Quantization, layers: Sequence[WeightedLayer]
) -> tuple[GraphModule, Quantization]:
    """The float graph with the rounded weights of `layers`, and the record that rounds their inputs."""
    graph = model.copy_graph()
    for layer in layers:
        replace_tensor(graph, layer.weight, tensor_named(quantized.graph, layer.weight))
        if layer.bias_node is not None:
            bias = str(layer.bias_node.target)
            replace_tensor(graph, bias, tensor_named(quantized.graph, bias))
    sources = {node.name for layer in layers for node in _origins(layer.node)}
    activations = {name: grid for name, grid in record.activations.items() if name in sources}
    return graph, replace(record, layers=tuple(layer.node.name for layer in layers), activations=activations)


def _judged(model: Model) -> tuple[Sample, ...]:
    """Never empty: int8-dynamic, weight-only and fp16 need no data, so there may be nothing but the example."""
    return model.held_out or model.calibration or (model.example_inputs,)


def _outputs(
    exact: GraphModule,
    graph: GraphModule,
    record: Quantization,
    samples: Sequence[Sample],
    same_picks: bool = True,
) -> list[np.ndarray]:
    """Runs `graph` with the grids of `record`; [flat float outputs] a sample."""
    results = output_nodes(graph)
    found: dict[str, list[torch.Tensor]] = {}
    for pair in walk(exact, graph, record, samples, same_picks=same_picks):
        if pair.node in results:
            found[pair.node.name] = pair.rounded
    return [
        np.concatenate([found[node.name][index].float().numpy().ravel() for node in results])
        for index in range(len(samples))
    ]


def output_nodes(graph: GraphModule) -> list[Node]:
    """The nodes that the graph gives back."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    return [node for node in output.all_input_nodes if isinstance(node.meta.get("val"), torch.Tensor)]


def _origins(node: Node) -> list[Node]:
    return [through_padding(source) for source in node.all_input_nodes if source.op != "get_attr"]

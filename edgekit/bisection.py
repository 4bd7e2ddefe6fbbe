"""Which layer went wrong first: the graph is cut short, exported and run again, by halves."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from edgekit.devices.device import Device
from edgekit.exporters.base import Exporter
from edgekit.model import Model, Sample
from edgekit.parity import compare, run_model, run_session
from edgekit.runtimes.session import SessionOptions


def truncate(model: Model, layer: str) -> Model:
    """`model` up to the graph node `layer`: its outputs are that node's and all that later nodes would have read.

    Inputs that it does not need are gone.
    """
    graph = model.copy_graph()
    frontier = _frontier(graph, layer)
    graph.graph.output_node().args = (tuple(frontier),)
    graph.graph.eliminate_dead_code()
    kept: list[str] = []
    for name, node in zip(model.example_inputs, graph.graph.find_nodes(op="placeholder"), strict=True):
        if node.users:
            kept.append(name)
        else:
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    quantization = model.quantization
    if quantization is not None:
        left = {node.name for node in graph.graph.nodes}
        parameters = {name for name, _ in graph.named_parameters()} | {name for name, _ in graph.named_buffers()}
        quantization = type(quantization)(
            method=quantization.method,
            scheme=quantization.scheme,
            weights={name: grid for name, grid in quantization.weights.items() if name in parameters},
            activations={name: grid for name, grid in quantization.activations.items() if name in left},
            layers=tuple(name for name in quantization.layers if name in left),
            fallbacks=quantization.fallbacks,
        )
    return model.evolve_quietly(
        module=torch.fx.GraphModule(graph, graph.graph, class_name="Prefix"),
        example_inputs=_only(model.example_inputs, kept),
        dynamic={name: dims for name, dims in model.dynamic.items() if name in kept},
        calibration=tuple(_only(sample, kept) for sample in model.calibration),
        held_out=tuple(_only(sample, kept) for sample in model.held_out),
        output_names=tuple(node.name for node in frontier),
        quantization=quantization,
        postprocess=None,
    )


def _frontier(graph: torch.fx.GraphModule, layer: str) -> list[torch.fx.Node]:
    """`layer` and the computed floating-point tensors that stand before it and are read after it."""
    nodes = list(graph.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    end = next(index for index, node in enumerate(nodes) if node.name == layer)
    return [
        node
        for node in nodes[: end + 1]
        if node.op == "call_function"
        and isinstance(node.meta.get("val"), torch.Tensor)
        and node.meta["val"].is_floating_point()
        and (node is nodes[end] or any(place[user] > end for user in node.users))
    ]


def _only(sample: Sample, names: list[str]) -> Sample:
    return {name: sample[name] for name in names}


def first_bad_layer(
    model: Model, reference: Model, exporter: Exporter, device: Device, limit_db: float, samples: int = 4
) -> tuple[str, float] | None:
    """The first layer with which the artifact leaves `reference` (the torch simulation) below `limit_db` SQNR.

    `model` and `reference` share node names. Costs log2(layers) exports. None where every prefix holds.
    """
    layers = candidate_layers(model)
    distance: dict[int, float] = {}

    def sqnr_at(index: int) -> float:
        if index not in distance:
            prefix, truth = truncate(model, layers[index]), truncate(reference, layers[index])
            inputs = (truth.held_out or truth.calibration or (truth.example_inputs,))[:samples]
            with TemporaryDirectory() as folder:
                artifact = exporter.export(prefix, Path(folder), device)
                with artifact.open(prefix, SessionOptions(threads=1)) as session:
                    actual = run_session(session, inputs)
            distance[index] = compare(layers[index], run_model(truth, inputs), actual).sqnr_db
        return distance[index]

    low, high = 0, len(layers) - 1
    if high < 0 or sqnr_at(high) >= limit_db:
        return None
    while low < high:
        middle = (low + high) // 2
        if sqnr_at(middle) < limit_db:
            high = middle
        else:
            low = middle + 1
    return layers[high], sqnr_at(high)


def candidate_layers(model: Model) -> list[str]:
    """The layers that carry weights or are quantized, in the order in which they run."""
    quantized = set(model.quantization.layers) if model.quantization else set()
    return [
        node.name
        for node in model.graph.graph.nodes
        if node.op == "call_function"
        and isinstance(node.meta.get("val"), torch.Tensor)
        and (node.name in quantized or any(source.op == "get_attr" for source in node.all_input_nodes))
    ]

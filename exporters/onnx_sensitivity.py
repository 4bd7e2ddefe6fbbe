"""What each layer of a trained .onnx file costs when it alone runs in int8: measured in ONNX Runtime.

The file is quantized once. From that graph each layer is put, with the quantize and dequantize nodes in front of it,
into the float graph, which then runs on a few samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgekit.exporters.onnx_source import INTEGER_LAYERS, prepare_graph, quantize_source, quiet_tools
from edgekit.model import Model, Sample
from edgekit.progress import Progress, silent
from edgekit.quantizers.sensitivity import Sensitivity
from edgekit.report.metrics import sqnr_db


def node_sensitivities(model: Model, format: str, progress: Progress = silent, samples: int = 8) -> list[Sensitivity]:
    """`model`: of a .onnx file, with static int8 recorded. One row for each layer that the record quantizes, in the
    order of the graph; `mflops` is left at 1, which ranks by noise alone.
    """
    assert model.onnx_path is not None and model.quantization is not None
    inputs = (model.calibration or model.held_out)[:samples]
    everything = replace(model, quantization=replace(model.quantization, fallbacks=()))
    quantized, _ = quantize_source(everything, format)
    with quiet_tools(), tempfile.TemporaryDirectory() as folder:
        plain = onnx.load(str(prepare_graph(onnx.load(str(model.onnx_path)), Path(folder))))
    wanted = _outputs(plain, inputs)
    kept = {line.layer for line in model.quantization.fallbacks}
    twins = {node.name: node for node in quantized.graph.node}
    makers = {name: node for node in quantized.graph.node for name in node.output}
    layers = [
        node
        for node in plain.graph.node
        if node.op_type in INTEGER_LAYERS and node.name not in kept and _chain(twins[node.name], makers)
    ]
    rows = []
    for done, layer in enumerate(layers):
        alone = _with_one_layer(plain, quantized, layer.name, _chain(twins[layer.name], makers))
        rows.append(Sensitivity(layer.name, sqnr_db(wanted, _outputs(alone, inputs)), 1.0))
        progress("measure sensitivity", done + 1, len(layers))
    return rows


def _chain(layer: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The quantize and dequantize nodes right in front of `layer`, in the order in which they run."""
    found: list[onnx.NodeProto] = []
    for name in layer.input:
        restore = makers.get(name)
        if restore is None or restore.op_type != "DequantizeLinear":
            continue
        store = makers.get(restore.input[0])
        found += [restore] if store is None else [store, restore]
    return found


def _with_one_layer(
    plain: onnx.ModelProto, quantized: onnx.ModelProto, name: str, chain: Sequence[onnx.NodeProto]
) -> onnx.ModelProto:
    """`plain` with the layer `name` reading through `chain`, as it does in `quantized`."""
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    del model.graph.node[:]
    for node in plain.graph.node:
        if node.name != name:
            model.graph.node.append(node)
            continue
        model.graph.node.extend(chain)
        twin = next(other for other in quantized.graph.node if other.name == name)
        layer = model.graph.node.add()
        layer.CopyFrom(node)
        layer.input[:] = twin.input
    # A rounded bias keeps the name of the float one.
    stored = {tensor.name for tensor in model.graph.initializer} | {name for node in chain for name in node.output}
    model.graph.initializer.extend(tensor for tensor in plain.graph.initializer if tensor.name not in stored)
    return model


def _outputs(model: onnx.ModelProto, samples: Iterable[Sample]) -> np.ndarray:
    """All floating-point outputs on all samples, one after another."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Fused integer kernels would round the layer's output too, which belongs to the next layer.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = []
    for sample in samples:
        values = session.run(None, {name: value.numpy() for name, value in sample.items()})
        rows += [value.ravel() for value in values if np.issubdtype(value.dtype, np.floating)]
    return np.concatenate(rows)

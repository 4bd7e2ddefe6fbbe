"""From a captured graph to a finished ONNX graph: conversion, named errors, clean-up, checks, stable bytes."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch.fx import GraphModule

from edgekit import __version__
from edgekit.errors import EdgekitError, ExportError, UnsupportedOperatorError
from edgekit.model import Model
from edgekit.passes.capture import export_program

PROTOBUF_LIMIT_BYTES = 2**31 - 1

# What torch.onnx says of an operator that it has no translation for.
_NO_TRANSLATION = (
    re.compile(r"No (?:ONNX function|decompositions registered).{0,60}?OpOverload\(op='([\w.:]+)'"),
    re.compile(r"No (?:ONNX function|decompositions registered) .{0,40}?(aten[\w.:]+)"),
    re.compile(r"Cannot find .{0,40}?OpOverload\(op='([\w.:]+)'"),
)


def convert(model: Model, graph: GraphModule, opset: int, format: str) -> ir.Model:
    """`graph` (model.graph, or its quantized form) as ONNX, names as the Model has them; not simplified yet.

    Raises UnsupportedOperatorError naming the operator, else ExportError.
    """
    program = export_program(model, graph)
    try:
        with _quiet_exporter(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=list(model.example_inputs),
                output_names=list(model.output_names),
                opset_version=opset,
                optimize=False,
                verbose=False,
            )
    except EdgekitError:
        raise
    except Exception as error:  # torch.onnx wraps whatever a translation raised
        raise explain(error, format) from error
    assert exported is not None
    converted = exported.model
    _rename_symbols(converted, model)
    return converted


def explain(error: BaseException, format: str) -> ExportError:
    """The operator's name, where the converter says it anywhere in the chain of causes."""
    chain = list(_causes(error))
    for cause in chain:
        for pattern in _NO_TRANSLATION:
            found = pattern.search(str(cause))
            if found:
                return UnsupportedOperatorError(
                    format,
                    found.group(1),
                    hint="replace it in the model with operators that ONNX has, or take another format",
                )
    summary = str(chain[-1]).strip().splitlines()
    return ExportError(
        f"torch.onnx failed: {type(chain[-1]).__name__}: {summary[0][:300] if summary else 'no message'}",
        hint="take another format with --format, or report the model to torch.onnx",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _rename_symbols(converted: ir.Model, model: Model) -> None:
    """torch.export's `s43` becomes the name that the Model gives this dimension, wherever it stands alone."""
    names: dict[str, str] = {}
    for value, (name, example) in zip(converted.graph.inputs, model.example_inputs.items(), strict=True):
        for dim in range(example.dim()):
            wanted = model.dynamic.get(name, {}).get(dim)
            found = value.shape[dim] if value.shape is not None else None
            if wanted is not None and isinstance(found, ir.SymbolicDim) and found.value is not None:
                names[found.value] = wanted
    for value in _values(converted):
        if value.shape is not None and not value.shape.frozen:
            for dim, size in enumerate(value.shape):
                if isinstance(size, ir.SymbolicDim) and size.value in names:
                    value.shape[dim] = ir.SymbolicDim(names[str(size.value)])


def _values(converted: ir.Model) -> Iterator[ir.Value]:
    yield from converted.graph.inputs
    for node in converted.graph.all_nodes():
        yield from node.outputs


def simplify(converted: ir.Model) -> None:
    """Folds constants (transposed weights too), batch norms and idle nodes, in place."""
    from onnxscript import optimizer

    with _quiet_exporter():
        optimizer.optimize(converted, input_size_limit=2**30, output_size_limit=2**30)
        _average_globally(converted)
        _pad_in_convolutions(converted)
        optimizer.optimize(converted, input_size_limit=2**30, output_size_limit=2**30)


def _average_globally(converted: ir.Model) -> None:
    """A mean over all of height and width becomes GlobalAveragePool, which runtimes quantize and keep in layout."""
    for node in list(converted.graph):
        if node.op_type != "ReduceMean" or node.domain != "" or node.attributes.get_int("noop_with_empty_axes", 0):
            continue
        source = node.inputs[0]
        axes = _reduced_axes(node)
        rank = None if source is None or source.shape is None else len(source.shape)
        if axes is None or rank is None or rank < 3:
            continue
        if {axis % rank for axis in axes} != set(range(2, rank)):
            continue
        pooled = ir.node("GlobalAveragePool", [source], name=node.name)
        last = pooled
        inserted = [pooled]
        if not node.attributes.get_int("keepdims", 1):
            last = ir.node("Flatten", [pooled.outputs[0]], attributes={"axis": 1})
            inserted.append(last)
        last.outputs[0].shape, last.outputs[0].dtype = node.outputs[0].shape, node.outputs[0].dtype
        ir.convenience.replace_nodes_and_values(
            converted.graph, node, [node], inserted, list(node.outputs), [last.outputs[0]]
        )


def _pad_in_convolutions(converted: ir.Model) -> None:
    """Pad(0) -> Conv becomes a Conv that pads, uneven sides included (the "same" padding of nets born in TensorFlow).

    Behind a DequantizeLinear it would keep the convolution from running in integers.
    """
    for node in list(converted.graph):
        pad = None if node.op_type != "Conv" or node.inputs[0] is None else node.inputs[0].producer()
        if pad is None or pad.op_type != "Pad" or len(pad.outputs[0].uses()) != 1:
            continue
        sides = _zero_padding(pad)
        if sides is None or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            continue
        own = node.attributes.get_ints("pads", (0,) * len(sides))
        node.attributes.add(ir.AttrInt64s("pads", [mine + more for mine, more in zip(own, sides, strict=True)]))
        node.replace_input_with(0, pad.inputs[0])
        converted.graph.remove(pad, safe=True)


def _zero_padding(pad: ir.Node) -> list[int] | None:
    """[begin of each spatial dimension, end of each], where `pad` puts zeros around them and nothing else."""
    constants = [
        None if value is None else ir.convenience.get_const_tensor(value) for value in pad.inputs[1:]
    ]  # pads, value, axes
    if pad.attributes.get_string("mode", "constant") != "constant" or not constants or constants[0] is None:
        return None
    if any(value is not None for value in pad.inputs[3:]):
        return None
    if len(pad.inputs) > 2 and pad.inputs[2] is not None and (constants[1] is None or constants[1].numpy().any()):
        return None
    sides = [int(side) for side in constants[0].numpy()]
    rank = len(sides) // 2
    if min(sides) < 0 or any(sides[place] for place in (0, 1, rank, rank + 1)):
        return None
    return sides[2:rank] + sides[rank + 2 :]


def _reduced_axes(node: ir.Node) -> list[int] | None:
    """From opset 18 an input, an attribute before."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    given = node.inputs[1] if len(node.inputs) > 1 else None
    constant = None if given is None else ir.convenience.get_const_tensor(given)
    return None if constant is None else [int(axis) for axis in constant.numpy().reshape(-1)]


def to_proto(converted: ir.Model) -> onnx.ModelProto:
    """Raises ExportError past protobuf's two gigabytes."""
    size = sum(tensor.const_value.nbytes for tensor in converted.graph.initializers.values() if tensor.const_value)
    if size > PROTOBUF_LIMIT_BYTES:
        raise ExportError(
            f"the weights take {size / 2**30:.1f} GiB, allowed 2 GiB in one ONNX file",
            hint="quantize the weights (--quantize int8-weight-only or int4-weight-only)",
        )
    proto: onnx.ModelProto = ir.to_proto(converted)
    return proto


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    return ir.from_proto(proto)


def finish(proto: onnx.ModelProto, format: str) -> bytes:
    """Shapes inferred, traces of the machine removed, checked, serialized: the same bytes for the same graph.

    Raises ExportError where onnx.checker finds a fault.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(proto, check_type=True, data_prop=True)
        for graph in _graphs(proto.graph):
            _strip(graph)
        for function in proto.functions:
            del function.metadata_props[:]
            function.doc_string = ""
        proto.doc_string, proto.producer_name, proto.producer_version = "", "edgekit", __version__
        del proto.metadata_props[:]
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ExportError(
            f"the {format} graph is not valid: {str(error).strip().splitlines()[0]}", hint="take another format"
        ) from error
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _strip(graph: onnx.GraphProto) -> None:
    graph.name, graph.doc_string = "edgekit", ""
    del graph.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    # Shape inference appends them in the order of a hash table.
    graph.value_info.sort(key=lambda value: value.name)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def write(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def operator_counts(nodes: Iterable[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))

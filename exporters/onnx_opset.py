"""Down to an older opset: torch writes opset 18, TensorRT's parsers on a Jetson read 17 (8.6) or 13 (8.2).

onnx's own version converter goes down by few operators only. What changed is in ONNX's Changelog.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgekit.errors import ExportError

NEWEST_SOURCE = 18
IR_VERSIONS = {13: 7, 17: 8}
REDUCTIONS = frozenset(
    f"Reduce{name}" for name in ("Max", "Min", "Mean", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
)

# Attributes that came after opset 13 or 17, with the value that means the older behaviour.
_NEW_ATTRIBUTES: dict[str, dict[str, object]] = {
    "BatchNormalization": {"training_mode": 0},
    "LSTM": {"layout": 0},
    "GRU": {"layout": 0},
    "RNN": {"layout": 0},
    "ScatterND": {"reduction": "none"},
    "ScatterElements": {"reduction": "none"},
    "Shape": {"start": 0},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": "stretch"},
}


def lower_opset(converted: ir.Model, opset: int, format: str) -> None:
    """Rewrites in place to `opset` (13 or 17). Raises ExportError naming the node that has no older form."""
    version = converted.opset_imports.get("", 1)
    if version <= opset:
        return
    if version > NEWEST_SOURCE:
        raise ExportError(
            f"{format} reads opset {opset}, the file has {version}",
            hint=f"export the file again at opset {NEWEST_SOURCE} or lower",
        )
    for node in list(converted.graph):
        if node.domain != "":
            continue
        if opset < 17:
            _expand(converted.graph, node)
    for node in list(converted.graph):
        _lower_node(node, opset, format)
    converted.opset_imports[""] = opset
    converted.ir_version = IR_VERSIONS[opset]


def _lower_node(node: ir.Node, opset: int, format: str) -> None:
    if node.op_type in REDUCTIONS:
        _axes_to_attribute(node, format)
    elif node.op_type == "Split" and "num_outputs" in node.attributes:
        _name_split_sizes(node, format)
    elif node.op_type == "Reshape" and opset < 14:
        _forbid_zero_sizes(node, opset, format)
    elif node.op_type == "Pad" and len(node.inputs) > 3 and node.inputs[3] is not None:
        raise _no_older_form(node, "axes given", opset, format)
    # In opset 17 these operators still have the attributes of 14 to 16; at 13 none of them has.
    for name, default in _NEW_ATTRIBUTES.get(node.op_type, {}).items():
        if name not in node.attributes or (opset >= 17 and node.op_type != "Resize"):
            continue
        if node.attributes[name].value != default:
            raise _no_older_form(node, f"{name}={node.attributes[name].value}", opset, format)
        node.attributes.pop(name)


def _forbid_zero_sizes(node: ir.Node, opset: int, format: str) -> None:
    """`allowzero` tells empty tensors apart, which no optimization profile has: it matters for a constant 0 only."""
    shape = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
    if node.attributes.get_int("allowzero", 0) and shape is not None and not shape.numpy().all():
        raise _no_older_form(node, "a size of 0", opset, format)
    node.attributes.pop("allowzero", None)


def _no_older_form(node: ir.Node, what: str, opset: int, format: str) -> ExportError:
    return ExportError(
        f"{format} reads opset {opset}, where {node.op_type} ({node.name}) with {what} does not exist",
        hint="change the operator in the model, or take the format onnx",
    )


def _axes_to_attribute(node: ir.Node, format: str) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return
    constant = ir.convenience.get_const_tensor(node.inputs[1])
    if constant is None:
        raise ExportError(f"{format} needs constant axes in {node.op_type} ({node.name})")
    node.resize_inputs(1)
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in constant.numpy().reshape(-1)])
    node.attributes.pop("noop_with_empty_axes", None)


def _name_split_sizes(node: ir.Node, format: str) -> None:
    """`num_outputs` says: equal parts, the last one smaller."""
    source, graph = node.inputs[0], node.graph
    assert source is not None and isinstance(graph, ir.Graph)
    axis = node.attributes.get_int("axis", 0)
    size = None if source.shape is None else source.shape[axis]
    if not isinstance(size, int):
        raise ExportError(f"{format} needs the size of the axis that Split ({node.name}) divides")
    parts = len(node.outputs)
    step = -(-size // parts)
    sizes = np.array([*[step] * (parts - 1), size - step * (parts - 1)], np.int64)
    node.resize_inputs(2)
    node.replace_input_with(1, _constant(graph, f"{node.name}_sizes", sizes))
    node.attributes.pop("num_outputs")


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    """Operators younger than opset 13, by their definition in the standard."""
    expansion = _EXPANSIONS.get(node.op_type)
    if expansion is None:
        return
    nodes = expansion(graph, node)
    last = nodes[-1].outputs[0]
    last.shape, last.dtype = node.outputs[0].shape, node.outputs[0].dtype
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [node.outputs[0]], [last])


def _expand_layer_norm(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias, over the last axes that `scale` covers."""
    source, scale = node.inputs[0], node.inputs[1]
    assert source is not None and scale is not None and scale.shape is not None
    axes = list(range(-len(scale.shape), 0))
    dtype = np.float16 if source.dtype == ir.DataType.FLOAT16 else np.float32
    epsilon = np.array(node.attributes.get_float("epsilon", 1e-5), dtype)
    mean = ir.node("ReduceMean", [source], attributes={"axes": axes, "keepdims": 1})
    centred = ir.node("Sub", [source, mean.outputs[0]])
    square = ir.node("Mul", [centred.outputs[0], centred.outputs[0]])
    variance = ir.node("ReduceMean", [square.outputs[0]], attributes={"axes": axes, "keepdims": 1})
    shifted = ir.node("Add", [variance.outputs[0], _constant(graph, f"{node.name}_epsilon", epsilon)])
    deviation = ir.node("Sqrt", [shifted.outputs[0]])
    normal = ir.node("Div", [centred.outputs[0], deviation.outputs[0]])
    nodes = [mean, centred, square, variance, shifted, deviation, normal]
    nodes.append(ir.node("Mul", [normal.outputs[0], scale]))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], node.inputs[2]]))
    for index, fresh in enumerate(nodes):
        fresh.name = f"{node.name}_{index}"
    return nodes


def _expand_hard_swish(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    """x * max(0, min(1, x / 6 + 0.5))."""
    source = node.inputs[0]
    gate = ir.node("HardSigmoid", [source], attributes={"alpha": 1 / 6, "beta": 0.5}, name=f"{node.name}_gate")
    return [gate, ir.node("Mul", [source, gate.outputs[0]], name=node.name)]


_EXPANSIONS: dict[str, Callable[[ir.Graph, ir.Node], list[ir.Node]]] = {
    "LayerNormalization": _expand_layer_norm,
    "HardSwish": _expand_hard_swish,
}

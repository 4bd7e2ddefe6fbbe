"""The captured aten graph as a Program. Shapes come from running the graph once on the example inputs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgekit.costs.operators import SCORES, SOFTMAX, Operator, Program, Step, Value
from edgekit.model import Model

VIEWS = {
    "view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "expand_as", "detach", "detach_",
    "alias", "dropout", "contiguous", "clone", "lift_fresh_copy", "view_as", "chunk", "split", "split_with_sizes",
    "unbind", "getitem", "feature_dropout", "dropout_", "_unsafe_view", "type_as", "positive", "numpy_T",
}  # fmt: skip
MOVEMENT = {
    "transpose", "permute", "slice", "select", "cat", "stack", "pad", "constant_pad_nd", "index", "index_select",
    "embedding", "gather", "roll", "repeat", "repeat_interleave", "copy_", "t", "flip", "unfold", "im2col",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "tile", "scatter", "slice_scatter", "select_scatter",
    "narrow", "movedim", "swapaxes", "meshgrid", "reflection_pad1d", "reflection_pad2d", "replication_pad2d",
}  # fmt: skip
PADS = {"pad", "constant_pad_nd"}
POOLS = {
    "max_pool2d", "max_pool1d", "avg_pool2d", "avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool1d", "mean",
    "sum", "amax", "amin", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
    "max", "min", "argmax", "cumsum", "interpolate", "grid_sampler",
}  # fmt: skip
NORMS = {"layer_norm", "group_norm", "instance_norm", "rms_norm", "softmax", "log_softmax", "var", "std", "norm"}
ABSORBED = {
    "batch_norm", "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_max",
    "add", "add_",
}  # fmt: skip
# Work for one element of the output, in floating-point operations: polynomial and table kernels in today's runtimes.
ELEMENT_FLOPS = {
    "gelu": 12, "gelu_": 12, "silu": 8, "silu_": 8, "sigmoid": 7, "sigmoid_": 7, "tanh": 8, "exp": 6, "erf": 10,
    "log": 6, "sin": 8, "cos": 8, "pow": 6, "rsqrt": 2, "sqrt": 2, "softplus": 10, "mish": 16, "elu": 6,
    "hardswish": 4, "hardswish_": 4, "hardsigmoid": 3, "layer_norm": 8, "group_norm": 8, "rms_norm": 5,
    "softmax": 10, "log_softmax": 10, "batch_norm": 2, "instance_norm": 8,
}  # fmt: skip
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d"}
PRODUCTS = {"linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "einsum"}
ATTENTION = {"scaled_dot_product_attention"}
RECURRENT = {"lstm", "gru", "rnn_tanh"}


class _Recorder(fx.Interpreter):
    """Runs the graph and keeps each node's value as shape and dtype."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.shapes: dict[str, list[tuple[tuple[int, ...], torch.dtype]]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        leaves = torch.utils._pytree.tree_leaves(result)
        self.shapes[n.name] = [(tuple(leaf.shape), leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor)]
        return result


_KNOWN: weakref.WeakKeyDictionary[fx.GraphModule, Program] = weakref.WeakKeyDictionary()


def torch_program(model: Model) -> Program:
    """Kept for as long as the graph lives. Raises SourceError for a Model that is not captured."""
    if model.graph not in _KNOWN:
        _KNOWN[model.graph] = _record(model)
    return _KNOWN[model.graph]


def _record(model: Model) -> Program:
    graph = model.graph
    recorder = _Recorder(graph)
    with torch.no_grad():
        recorder.run(*model.args)
    shapes = recorder.shapes
    values = {name: _value(leaves) for name, leaves in shapes.items()}
    nodes = list(graph.graph.nodes)
    constant = _constants(nodes)
    operators = [
        _operator(node, shapes, constant)
        for node in nodes
        if node.op in ("call_function", "call_method", "call_module")
        and node.name not in constant
        and shapes[node.name]
    ]
    outputs = [node.name for node in graph.graph.output_node().all_input_nodes if node.name not in constant]
    inputs = [node.name for node in nodes if node.op == "placeholder"]
    return Program(tuple(operators), values, tuple(inputs), tuple(outputs))


def _value(leaves: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> Value:
    if not leaves:
        return Value(0, 1, False)
    elements = sum(math.prod(shape) for shape, _ in leaves)
    dtype = leaves[0][1]
    return Value(elements, dtype.itemsize, dtype.is_floating_point)


def _constants(nodes: Sequence[fx.Node]) -> frozenset[str]:
    """Weights, and what is computed from weights alone: exporters fold it."""
    names: set[str] = set()
    for node in nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and all(before.name in names for before in node.all_input_nodes)
        ):
            names.add(node.name)
    return frozenset(names)


def operator_name(node: fx.Node) -> str:
    """`aten.conv2d.default` -> `conv2d`."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return getattr(target, "__name__", str(target))


def _operator(
    node: fx.Node, shapes: dict[str, list[tuple[tuple[int, ...], torch.dtype]]], constant: frozenset[str]
) -> Operator:
    name = operator_name(node)
    sources = node.all_input_nodes
    inputs = tuple(source.name for source in sources if source.name not in constant)
    weights = [source for source in sources if source.name in constant]
    weight_elements = sum(math.prod(shape) for source in weights for shape, _ in shapes[source.name])
    elements = sum(math.prod(shape) for shape, _ in shapes[node.name])
    read = sum(math.prod(shape) for source in inputs for shape, _ in shapes[source])
    kind, flops = _cost(node, name, shapes, elements, read)
    steps = _attention(node, shapes) if name in ATTENTION else ()
    if name in ("embedding", "index_select", "gather"):
        weight_elements = min(weight_elements, elements)
    if kind == "view" and not inputs:
        kind = "movement"
    return Operator(
        name=node.name,
        kind=kind,
        flops=float(flops) + sum(step.flops for step in steps),
        inputs=inputs,
        output=node.name,
        weight_elements=weight_elements,
        absorbed=name in ABSORBED,
        exact=name not in ELEMENT_FLOPS,
        steps=steps,
    )


def _attention(node: fx.Node, shapes: dict[str, list[tuple[tuple[int, ...], torch.dtype]]]) -> tuple[Step, ...]:
    """Files hold no attention in one operator that all runtimes know: queries times keys, a softmax (10 operations an
    element), and the product with the values. A mask is added to the scores, by the kernel that makes them."""
    operands = [argument for argument in node.args[:3] if isinstance(argument, fx.Node)]
    query, key, value = (shapes[operand.name][0][0] for operand in operands)
    masks = [shapes[source.name][0][0] for source in node.all_input_nodes if source not in operands]
    rows, keys = math.prod(query[:-1]), key[-2]
    scores, answer = rows * keys, rows * value[-1]
    read = sum(map(math.prod, (query, key, *masks)))
    return (
        Step(SCORES, "matmul", 2.0 * scores * query[-1], read + scores),
        Step(SOFTMAX, "norm", float(ELEMENT_FLOPS["softmax"] * scores), 2 * scores),
        Step("", "matmul", 2.0 * scores * value[-1], scores + math.prod(value) + answer),
    )


def _cost(
    node: fx.Node,
    name: str,
    shapes: dict[str, list[tuple[tuple[int, ...], torch.dtype]]],
    elements: int,
    read: int,
) -> tuple[str, float]:
    """Kind and flops of one node; `elements` are its output's, `read` those of its activations."""

    def shape(index: int) -> tuple[int, ...]:
        argument = node.args[index]
        assert isinstance(argument, fx.Node)
        return shapes[argument.name][0][0]

    if name in CONVOLUTIONS:
        return _convolution(node, name, shape(0), shape(1), elements)
    if name == "einsum":
        return "matmul", 2.0 * elements * _contracted(shapes, node, elements)
    if name in PRODUCTS:
        return "matmul", 2.0 * elements * shape(1 if name in ("addmm", "baddbmm") else 0)[-1]
    if name in ATTENTION:
        return "attention", 0.0
    if name in RECURRENT:
        return "matmul", _recurrent(node, shapes)
    if name in VIEWS or (name in PADS and _is_absorbed_pad(node)):
        return "view", 0.0
    if name in MOVEMENT:
        return "movement", 0.0
    if name in NORMS or name == "batch_norm":
        return "norm", float(ELEMENT_FLOPS.get(name, 8) * max(elements, read if name not in ELEMENT_FLOPS else 0))
    if name in POOLS:
        return "pool", float(max(_window(node, name, shape(0)) * elements, read))
    if name == "to" or name == "_to_copy":
        return "elementwise", 0.0
    return "elementwise", float(ELEMENT_FLOPS.get(name, 1) * elements)


def _convolution(
    node: fx.Node, name: str, image: tuple[int, ...], weight: tuple[int, ...], elements: int
) -> tuple[str, float]:
    """2 x outputs x taps a filter has (for a transposed convolution: inputs x taps that each one feeds)."""
    transposed = "transpose" in name or (name == "convolution" and bool(node.args[6]))
    if transposed:
        return "conv", 2.0 * math.prod(image) * math.prod(weight[1:])
    depthwise = weight[1] == 1 and image[1] > 1
    return ("depthwise" if depthwise else "conv"), 2.0 * elements * math.prod(weight[1:])


def _contracted(shapes: dict[str, list[tuple[tuple[int, ...], torch.dtype]]], node: fx.Node, elements: int) -> float:
    """The length of the contracted axes of a two-operand einsum, whose batch axes cannot be told from its free ones:
    sqrt(|A| |B| / |C|) is exact without batch axes, an upper bound with them."""
    sizes = [math.prod(shapes[source.name][0][0]) for source in node.all_input_nodes]
    return math.sqrt(math.prod(sizes) / elements) if len(sizes) == 2 and elements else 1.0


def _recurrent(node: fx.Node, shapes: dict[str, list[tuple[tuple[int, ...], torch.dtype]]]) -> float:
    """Every weight matrix is used once a step and a sequence."""
    leaves = [shapes[source.name][0][0] for source in node.all_input_nodes]
    steps = math.prod(leaves[0][:-1])
    return 2.0 * steps * sum(math.prod(shape) for shape in leaves[1:] if len(shape) == 2)


def _is_absorbed_pad(node: fx.Node) -> bool:
    """Nothing is padded, or only convolutions read it: they pad by themselves."""
    amounts = node.args[1]
    assert isinstance(amounts, list | tuple)
    return not any(amounts) or all(operator_name(user) in CONVOLUTIONS for user in node.users)


def _window(node: fx.Node, name: str, image: tuple[int, ...]) -> int:
    """Elements under the pooling window, which may be larger than the image."""
    if not name.endswith("pool2d") or name.startswith("adaptive"):
        return 1
    kernel = node.args[1]
    sizes = list(kernel) if isinstance(kernel, list | tuple) else [kernel]
    sizes = sizes * 2 if len(sizes) == 1 else sizes
    return math.prod(min(int(str(size)), axis) for size, axis in zip(sizes, image[-2:], strict=True))

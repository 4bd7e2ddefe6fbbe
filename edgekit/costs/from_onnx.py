"""A trained ONNX graph as a Program: shapes by ONNX's own shape inference, at the example inputs' sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from edgekit.costs.operators import Operator, Program, Value
from edgekit.errors import SourceError
from edgekit.model import Model

VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Expand"}
# A QuantizeLinear / DequantizeLinear pair says how a value is stored, and is fused away by every runtime.
FREE = VIEWS | {"Constant", "Shape", "QuantizeLinear", "DequantizeLinear", "ConstantOfShape"}
MOVEMENT = {
    "Transpose", "Slice", "Concat", "Split", "Gather", "Pad", "Tile", "GatherElements", "GatherND", "ScatterND",
    "DepthToSpace", "SpaceToDepth", "Compress",
}  # fmt: skip
POOLS = {
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax", "Resize",
    "Upsample", "ReduceL2", "ReduceMin",
}  # fmt: skip
NORMS = {
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "Softmax",
    "LogSoftmax",
    "BatchNormalization",
}
ABSORBED = {"Relu", "Clip", "BatchNormalization", "Add"}
ELEMENT_FLOPS = {
    "Gelu": 12, "Sigmoid": 7, "Tanh": 8, "Exp": 6, "Erf": 10, "Log": 6, "Pow": 6, "Sqrt": 2, "HardSwish": 4,
    "Softmax": 10, "LogSoftmax": 10, "LayerNormalization": 8, "Softplus": 10, "Elu": 6, "Mish": 16,
}  # fmt: skip
CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv"}
PRODUCTS = {"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"}
RECURRENT = {"LSTM", "GRU", "RNN"}
ELEMENT_BYTES = {"FLOAT": 4, "FLOAT16": 2, "BFLOAT16": 2, "DOUBLE": 8, "INT64": 8, "INT32": 4, "INT8": 1, "UINT8": 1}

Shape = tuple[int, ...]


class _Graph:
    """Shapes and element types of every value, and the names of constants."""

    def __init__(self, proto: Any, sizes: dict[str, Shape]) -> None:
        import onnx

        for entry in proto.graph.input:
            if entry.name in sizes:
                _fix_shape(entry, sizes[entry.name])
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        self.proto = inferred
        self.constants = {tensor.name for tensor in inferred.graph.initializer}
        self.shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer}
        self.types: dict[str, str] = {}
        for entry in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
            tensor = entry.type.tensor_type
            self.shapes[entry.name] = tuple(max(1, dim.dim_value) for dim in tensor.shape.dim)
            self.types[entry.name] = onnx.TensorProto.DataType.Name(tensor.elem_type)

    def shape(self, name: str) -> Shape:
        """() where shape inference found none: such a value counts as one element."""
        return self.shapes.get(name, ())

    def value(self, name: str) -> Value:
        kind = self.types.get(name, "FLOAT")
        return Value(math.prod(self.shape(name)), ELEMENT_BYTES.get(kind, 4), "FLOAT" in kind or kind == "DOUBLE")


def onnx_program(model: Model) -> Program:
    """Control flow (If, Loop) counts as a kernel without work. Raises SourceError for a file that is not ONNX."""
    import onnx
    from google.protobuf.message import DecodeError

    assert model.onnx_path is not None
    try:
        proto = onnx.load(str(model.onnx_path))
    except (OSError, DecodeError) as error:
        raise SourceError(f"{model.onnx_path} is not an ONNX file: {error}") from error
    sizes = {name: tuple(value.shape) for name, value in model.example_inputs.items()}
    graph = _Graph(proto, sizes)
    operators: list[Operator] = []
    for index, node in enumerate(graph.proto.graph.node):
        if all(name in graph.constants for name in node.input if name):
            graph.constants.update(node.output)
        else:
            operators += _operators(node, node.name or f"{node.op_type}_{index}", graph)
    names = {name for operator in operators for name in (*operator.inputs, operator.output)}
    inputs = [entry.name for entry in graph.proto.graph.input if entry.name not in graph.constants]
    outputs = [entry.name for entry in graph.proto.graph.output]
    values = {name: graph.value(name) for name in names.union(inputs, outputs)}
    return Program(tuple(operators), values, tuple(inputs), tuple(outputs))


def _operators(node: Any, name: str, graph: _Graph) -> Iterable[Operator]:
    """One Operator; each further output is a view of the first (a Split moves its input once)."""
    inputs = tuple(entry for entry in node.input if entry and entry not in graph.constants)
    weights = [entry for entry in node.input if entry in graph.constants]
    kind, flops = _cost(node, graph, weights)
    outputs = [entry for entry in node.output if entry]
    elements = math.prod(graph.shape(outputs[0]))
    held = sum(math.prod(graph.shape(entry)) for entry in weights)
    yield Operator(
        name=name,
        kind=kind,
        flops=flops,
        inputs=inputs,
        output=outputs[0],
        weight_elements=min(held, elements) if node.op_type == "Gather" else held,
        absorbed=node.op_type in ABSORBED,
        exact=node.op_type not in ELEMENT_FLOPS,
    )
    for further in outputs[1:]:
        yield Operator(f"{name}.{further}", "view", 0.0, (outputs[0],), further)


def _cost(node: Any, graph: _Graph, weights: list[str]) -> tuple[str, float]:
    name = node.op_type
    elements = math.prod(graph.shape(node.output[0]))
    read = sum(math.prod(graph.shape(entry)) for entry in node.input if entry not in graph.constants)
    if name in CONVOLUTIONS or name == "ConvTranspose":
        index = 3 if name == "QLinearConv" else 1
        weight, image = graph.shape(node.input[index]), graph.shape(node.input[0])
        if name == "ConvTranspose":
            return "conv", 2.0 * math.prod(image) * math.prod(weight[1:])
        depthwise = len(weight) > 1 and weight[1] == 1 and len(image) > 1 and image[1] > 1
        return ("depthwise" if depthwise else "conv"), 2.0 * elements * math.prod(weight[1:])
    if name in PRODUCTS:
        left = graph.shape(node.input[0])
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return "matmul", 2.0 * elements * (left[0 if transposed else -1] if left else 1)
    if name in RECURRENT:
        steps = math.prod(graph.shape(node.input[0])[:2])
        return "matmul", 2.0 * steps * sum(math.prod(graph.shape(entry)) for entry in node.input[1:3])
    if name in FREE:
        return "view", 0.0
    if name in MOVEMENT:
        return "movement", 0.0
    if name in NORMS:
        return "norm", float(ELEMENT_FLOPS.get(name, 2) * elements)
    if name in POOLS:
        kernel = next((tuple(entry.ints) for entry in node.attribute if entry.name == "kernel_shape"), ())
        image = graph.shape(node.input[0])[-len(kernel) :] if kernel else ()
        window = math.prod(min(size, axis) for size, axis in zip(kernel, image, strict=False))
        return "pool", float(max(read, elements * window))
    if name in ("If", "Loop", "Scan"):
        return "other", 0.0
    return "elementwise", float(ELEMENT_FLOPS.get(name, 1) * elements)


def _fix_shape(entry: Any, sizes: Shape) -> None:
    dims = entry.type.tensor_type.shape.dim
    if len(dims) != len(sizes):
        raise SourceError(f"the input {entry.name!r} has {len(dims)} dimensions, the example has {len(sizes)}")
    for dim, size in zip(dims, sizes, strict=True):
        dim.Clear()
        dim.dim_value = size

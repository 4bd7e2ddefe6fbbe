"""TensorRT's rules, checked on the graph without TensorRT: what its ONNX parser and builder would refuse.

Sources: onnx-tensorrt, docs/operators.md at the tags release/8.2-GA (JetPack 4.6, Jetson Nano) and release/8.6-GA
(JetPack 5 and 6); NVIDIA TensorRT Developer Guide, "Working with Quantized Types" (explicit quantization: symmetric,
per tensor for activations, per channel for weights). TensorRT itself is not run here: a graph that passes may still
meet a limit that only the builder knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgekit.errors import ExportError, UnsupportedOperatorError

_OPERATORS_8_2 = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu
    Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div
    Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual HardSigmoid Identity If ImageScaler
    InstanceNormalization IsNaN LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool
    MatMul Max MaxPool Mean Min Mul Neg NonMaxSuppression Not Or PRelu Pad ParametricSoftplus Pow QuantizeLinear
    RNN RandomUniform RandomUniformLike Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence Round
    ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose
    Unsqueeze Upsample Where
    """.split()  # noqa: SIM905 - a table to read
)

_OPERATORS_8_6 = _OPERATORS_8_2 | frozenset(
    """
    GridSample GroupNormalization HardSwish IsInf LayerNormalization MeanVarianceNormalization Mod NonZero
    OneHot RandomNormal RandomNormalLike Reciprocal RoiAlign Shrink Trilu Xor
    """.split()  # noqa: SIM905 - a table to read
)


@dataclass(frozen=True)
class Parser:
    """A TensorRT release's ONNX parser: the newest opset that it reads, and its operators."""

    release: str
    opset: int
    operators: frozenset[str]


PARSERS = {
    "sm_53": Parser("8.2", 13, _OPERATORS_8_2),
    "sm_62": Parser("8.2", 13, _OPERATORS_8_2),
}
NEWER = Parser("8.6", 17, _OPERATORS_8_6)

FP16_MAX = 65504.0
INT32_MAX = 2**31 - 1
TENSOR_TYPES = {
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.BOOL,
}  # fmt: skip

# Axis of the output channel in the stored weight: the only one that may have scales of its own.
_WEIGHT_AXES = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}


@dataclass(frozen=True)
class Profile:
    """The shapes that a dynamic input may take: smallest, the one to tune for, largest."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True)
class Findings:
    """`broken`: (rule, node or tensor) that TensorRT refuses. `slow`: legal, but costs a fusion."""

    broken: list[tuple[str, str]] = field(default_factory=list)
    slow: list[tuple[str, str]] = field(default_factory=list)


def check(proto: onnx.ModelProto, parser: Parser, profiles: Mapping[str, Profile], *, half: bool) -> tuple[str, ...]:
    """Notes on placements that cost speed. Raises UnsupportedOperatorError or ExportError naming the nodes."""
    for node in _nodes(proto.graph):
        if node.domain not in ("", "ai.onnx") or node.op_type not in parser.operators:
            raise UnsupportedOperatorError(
                f"TensorRT {parser.release}",
                node.op_type,
                detail=f"node {node.name}",
                hint="replace it in the model, or take the format onnx with the CUDA provider",
            )
    findings = Findings()
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if opset > parser.opset:
        findings.broken.append((f"opset {opset}, allowed {parser.opset}", "the model"))
    _check_shapes(proto.graph, profiles, findings)
    _check_tensors(proto.graph, half, findings)
    QdqRules(proto.graph, findings).run()
    if findings.broken:
        listed = "; ".join(f"{where}: {rule}" for rule, where in findings.broken[:8])
        more = f" (and {len(findings.broken) - 8} more)" if len(findings.broken) > 8 else ""
        raise ExportError(
            f"TensorRT {parser.release} would refuse this graph: {listed}{more}",
            hint="quantize with the tensorrt scheme, give dynamic inputs a range, or take --quantize fp16",
        )
    return tuple(f"{where}: {rule}" for rule, where in findings.slow)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _check_shapes(graph: onnx.GraphProto, profiles: Mapping[str, Profile], findings: Findings) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in constants:
            continue
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        profile = profiles.get(value.name)
        if None in sizes and profile is None:
            findings.broken.append(("a dynamic shape without an optimization profile", value.name))
        if profile is None:
            continue
        ordered = [profile.minimum, profile.optimum, profile.maximum]
        if any(len(shape) != len(sizes) for shape in ordered):
            findings.broken.append((f"a profile of another rank than {len(sizes)}", value.name))
            continue
        for dim, size in enumerate(sizes):
            low, best, high = (shape[dim] for shape in ordered)
            if not low <= best <= high or (size is not None and not low == best == high == size):
                findings.broken.append((f"profile {low}/{best}/{high} in dimension {dim} of size {size}", value.name))


def _check_tensors(graph: onnx.GraphProto, half: bool, findings: Findings) -> None:
    for tensor in graph.initializer:
        if tensor.data_type not in TENSOR_TYPES:
            findings.broken.append((f"type {TensorProto.DataType.Name(tensor.data_type)}", tensor.name))
            continue
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            continue
        stored = numpy_helper.to_array(tensor)
        if stored.size == 1 and stored.item() < -FP16_MAX:
            continue  # what attention masks add or fill in: minus infinity in every precision
        values = np.abs(stored)
        if not np.isfinite(values).all():
            findings.broken.append(("NaN or infinity", tensor.name))
        elif half and values.size and values.max() > FP16_MAX:
            findings.broken.append((f"{values.max():.3g} leaves fp16's range of {FP16_MAX:.0f}", tensor.name))


class QdqRules:
    """Explicit quantization: where Q and DQ stand, and what their scales and zero points are."""

    def __init__(self, graph: onnx.GraphProto, findings: Findings) -> None:
        self.graph, self.findings = graph, findings
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = node.attribute[0].t
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in graph.node:
            for position, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, position))
        self.outputs = {value.name for value in graph.output}

    def run(self) -> None:
        for node in self.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                self._check_grid(node)
            if node.op_type == "QuantizeLinear":
                self._check_activation(node)
            if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
                self._check_weight(node)
            if node.op_type == "Add":
                self._check_residual(node)

    def _check_grid(self, node: onnx.NodeProto) -> None:
        scale = self.constants.get(node.input[1])
        if scale is None:
            self._broken(node, "the scale is not a constant")
            return
        values = numpy_helper.to_array(scale)
        if not (np.isfinite(values).all() and (values > 0).all()):
            self._broken(node, "a scale that is not positive and finite")
        if len(node.input) < 3:
            # Without a zero point, QuantizeLinear means uint8.
            if node.op_type == "QuantizeLinear":
                self._broken(node, "integers of type UINT8, allowed INT8")
            return
        point = self.constants.get(node.input[2])
        if point is None or numpy_helper.to_array(point).any():
            self._broken(node, "a zero point other than 0")
        if point is not None and point.data_type != TensorProto.INT8:
            self._broken(node, f"integers of type {TensorProto.DataType.Name(point.data_type)}, allowed INT8")

    def _check_activation(self, node: onnx.NodeProto) -> None:
        scale = self.constants.get(node.input[1])
        if node.input[0] not in self.constants and scale is not None and numpy_helper.to_array(scale).size > 1:
            self._broken(node, "one scale a channel on an activation")
        readers = self.readers.get(node.output[0], [])
        if node.output[0] in self.outputs or any(reader.op_type != "DequantizeLinear" for reader, _ in readers):
            self._broken(node, "a quantized tensor that is not dequantized")

    def _check_weight(self, node: onnx.NodeProto) -> None:
        """Stored integers: int8 only, and scales along the output channels of their reader."""
        stored = self.constants[node.input[0]]
        if stored.data_type != TensorProto.INT8:
            self._broken(node, f"stored {TensorProto.DataType.Name(stored.data_type)}, allowed INT8")
        scale = self.constants.get(node.input[1])
        if scale is None or numpy_helper.to_array(scale).size == 1:
            return
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1) % max(len(stored.dims), 1)
        for reader, position in self.readers.get(node.output[0], []):
            wanted = self._weight_axis(reader)
            if wanted is None or position != 1:
                self._broken(node, f"scales per channel feed {reader.op_type} ({reader.name})")
            elif axis != wanted:
                self._broken(node, f"scales along axis {axis}, allowed {wanted} for {reader.op_type}")

    def _weight_axis(self, reader: onnx.NodeProto) -> int | None:
        if reader.op_type == "Gemm":
            return 0 if any(entry.name == "transB" and entry.i for entry in reader.attribute) else 1
        return _WEIGHT_AXES.get(reader.op_type)

    def _check_residual(self, node: onnx.NodeProto) -> None:
        """An Add of one quantized and one float tensor runs in float, and ends the integer region."""
        branches = [name for name in node.input if name not in self.constants]
        quantized = [
            name for name in branches if name in self.producers and self.producers[name].op_type == "DequantizeLinear"
        ]
        if len(branches) == 2 and len(quantized) == 1:
            self.findings.slow.append(("only one input of the sum is quantized, so it runs in float", node.name))

    def _broken(self, node: onnx.NodeProto, rule: str) -> None:
        self.findings.broken.append((rule, node.name or node.output[0]))

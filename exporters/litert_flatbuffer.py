"""Edits on a finished .tflite: a float interface around integer kernels, and a count of what runs how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgekit.errors import ExportError

IDENTIFIER = b"TFL3"
SMALLEST_STORED_BYTES = 1024  # a smaller constant gains less than the operator that unpacks it costs
INTEGERS = (schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT16)
OPERATOR_NAMES = {
    code: name
    for name, code in vars(schema.BuiltinOperator).items()
    if isinstance(code, int) and not name.startswith("_")
}
# Operators that move values or leave their meaning alone: their precision says nothing about the model's.
MOVEMENT = {"TRANSPOSE", "RESHAPE", "QUANTIZE", "DEQUANTIZE", "PAD", "PADV2", "SLICE", "STRIDED_SLICE", "CAST", "SHAPE"}


def read_model(content: bytes) -> Any:
    return schema.ModelT.InitFromPackedBuf(content, 0)


def write_model(model: Any) -> bytes:
    import flatbuffers  # type: ignore[import-untyped]

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def restore_float_interface(content: bytes) -> bytes:
    """Quantized inputs get a QUANTIZE in front and quantized outputs a DEQUANTIZE behind, as the model's own dtypes.

    The converter takes such operators at the edge of the graph away and leaves integers for the caller to scale.
    """
    model = read_model(content)
    graph = model.subgraphs[0]
    inputs = _wrap_all(model, graph, graph.inputs, schema.BuiltinOperator.QUANTIZE)
    outputs = _wrap_all(model, graph, graph.outputs, schema.BuiltinOperator.DEQUANTIZE)
    if not inputs and not outputs:
        return content
    graph.inputs = [inputs.get(index, index) for index in graph.inputs]
    graph.outputs = [outputs.get(index, index) for index in graph.outputs]
    for signature in model.signatureDefs or ():
        for entry in signature.inputs:
            entry.tensorIndex = inputs.get(entry.tensorIndex, entry.tensorIndex)
        for entry in signature.outputs:
            entry.tensorIndex = outputs.get(entry.tensorIndex, entry.tensorIndex)
    return write_model(model)


def _is_quantized(tensor: Any) -> bool:
    found = tensor.quantization
    return tensor.type in INTEGERS and found is not None and found.scale is not None and len(found.scale) > 0


def _wrap_all(model: Any, graph: Any, indices: Iterable[int], builtin: int) -> dict[int, int]:
    """Quantized tensor -> its new float twin."""
    found = [index for index in dict.fromkeys(indices) if _is_quantized(graph.tensors[index])]
    return {index: _wrap(model, graph, index, builtin) for index in found}


def _wrap(model: Any, graph: Any, index: int, builtin: int) -> int:
    """Adds the float twin of a tensor and the operator between them; the twin's index."""
    quantized = graph.tensors[index]
    twin = schema.TensorT()
    twin.type = schema.TensorType.FLOAT32
    twin.shape, twin.shapeSignature, twin.hasRank = quantized.shape, quantized.shapeSignature, quantized.hasRank
    twin.buffer = 0  # the format keeps buffer 0 empty, for tensors made at run time
    twin.name = quantized.name
    quantized.name = quantized.name + b"_quantized"
    graph.tensors.append(twin)
    new = len(graph.tensors) - 1
    step = schema.OperatorT()
    step.opcodeIndex = _operator_code(model, builtin)
    is_input = builtin == schema.BuiltinOperator.QUANTIZE
    step.inputs, step.outputs = ([new], [index]) if is_input else ([index], [new])
    graph.operators.insert(0 if is_input else len(graph.operators), step)
    return new


def _operator_code(model: Any, builtin: int, version: int = 1) -> int:
    for place, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin and code.version == version:
            return place
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def operators(content: bytes) -> list[tuple[str, bool]]:
    """(name, whether it computes on integers) of each operator, by the type of its first output."""
    model = read_model(content)
    graph = model.subgraphs[0]
    found = []
    for step in graph.operators:
        code = model.operatorCodes[step.opcodeIndex]
        name = OPERATOR_NAMES.get(code.builtinCode, str(code.builtinCode))
        if code.customCode:
            name = code.customCode.decode()
        found.append((name, _is_quantized(graph.tensors[step.outputs[0]])))
    return found


def integer_notes(content: bytes) -> tuple[str, ...]:
    """How much of a statically quantized file runs on integers, and what does not."""
    computing = [(name, quantized) for name, quantized in operators(content) if name not in MOVEMENT]
    left = Counter(name for name, quantized in computing if not quantized)
    notes = [f"{len(computing) - left.total()} of {len(computing)} operators run on integers"]
    if left:
        notes.append("in float: " + ", ".join(f"{name} x{count}" for name, count in left.most_common()))
    return tuple(notes)


def restore_tables(content: bytes, tables: Sequence[np.ndarray]) -> tuple[bytes, int]:
    """8-bit embedding tables get a scale a row and zero points of 0, from the float `tables`; how many there were.

    The converter rounds a table to one scale and any zero point, and LiteRT's look-up takes no zero point but 0.
    """
    model = read_model(content)
    found = 0
    for graph in model.subgraphs:
        for step in graph.operators:
            if model.operatorCodes[step.opcodeIndex].builtinCode != schema.BuiltinOperator.EMBEDDING_LOOKUP:
                continue
            stored = graph.tensors[step.inputs[1]]
            if stored.type != schema.TensorType.INT8 or len(stored.quantization.scale) > 1:
                continue
            rows = _matching_table(model, stored, tables)
            scale = np.maximum(np.abs(rows).max(1) / 127, np.finfo(np.float32).tiny).astype(np.float32)
            rounded = np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int8)
            model.buffers[stored.buffer].data = np.frombuffer(rounded.tobytes(), np.uint8)
            stored.quantization.scale = scale
            stored.quantization.zeroPoint = np.zeros(len(scale), np.int64)
            stored.quantization.quantizedDimension = 0
            found += 1
    return (write_model(model), found) if found else (content, 0)


def _matching_table(model: Any, stored: Any, tables: Sequence[np.ndarray]) -> np.ndarray:
    """The float table that the converter rounded to `stored`. Raises ExportError."""
    scale, point = float(stored.quantization.scale[0]), int(stored.quantization.zeroPoint[0])
    values = np.frombuffer(bytes(model.buffers[stored.buffer].data), np.int8).astype(np.float32)
    values = ((values - point) * scale).reshape(stored.shape)
    for table in tables:
        if table.shape == values.shape and np.abs(table - values).max() <= 1.01 * scale:
            return table
    raise ExportError(
        f"litert rounded an embedding table of {list(values.shape)} that the model does not hold",
        hint="--quantize none, or use --format onnx",
    )


def store_half(content: bytes) -> tuple[bytes, int]:
    """Float constants whose values are half-precision numbers are stored as such, behind a DEQUANTIZE.

    Gives the new file and how many constants it holds in half precision.
    """
    model = read_model(content)
    graph = model.subgraphs[0]
    readers = Counter(tensor.buffer for each in model.subgraphs for tensor in each.tensors)
    steps = []
    for index, tensor in enumerate(list(graph.tensors)):
        data = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or data is None or len(data) < SMALLEST_STORED_BYTES:
            continue
        values = np.frombuffer(bytes(data), np.float32)
        half = values.astype(np.float16)
        if readers[tensor.buffer] > 1 or not np.array_equal(half.astype(np.float32), values):
            continue
        step = schema.OperatorT()
        step.opcodeIndex = _operator_code(model, schema.BuiltinOperator.DEQUANTIZE, version=3)
        step.inputs, step.outputs = [_store_constant(model, graph, index, half)], [index]
        steps.append(step)
    graph.operators = [*steps, *graph.operators]
    return write_model(model), len(steps)


def _store_constant(model: Any, graph: Any, index: int, half: np.ndarray) -> int:
    """Puts `half` into the constant's buffer, under a new tensor; its index. The old one is now made at run time."""
    wide = graph.tensors[index]
    model.buffers[wide.buffer].data = np.frombuffer(half.tobytes(), np.uint8)
    twin = schema.TensorT()
    twin.type, twin.shape, twin.hasRank = schema.TensorType.FLOAT16, wide.shape, wide.hasRank
    twin.name = wide.name + b"_stored"
    twin.buffer, wide.buffer = wide.buffer, 0
    graph.tensors.append(twin)
    return len(graph.tensors) - 1

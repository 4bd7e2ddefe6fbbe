"""Small ONNX models written byte by byte: a device that probes itself has onnxruntime, but not the onnx package.

Protocol Buffers wire format (protobuf.dev/programming-guides/encoding) and the field numbers of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

OPSET = 17
IR_VERSION = 8
ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10}


@dataclass(frozen=True)
class Node:
    """`attributes` are integers or lists of integers, which is all that the probe's operators take."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)


def encode_model(
    nodes: Sequence[Node],
    constants: Mapping[str, np.ndarray],
    inputs: Mapping[str, tuple[str, tuple[int, ...]]],
    output: tuple[str, str, tuple[int, ...]],
) -> bytes:
    """A ModelProto of one graph. `inputs`: name -> (dtype, shape); `output`: name, dtype, shape."""
    graph = b"".join(_field(1, _node(node, index)) for index, node in enumerate(nodes))
    graph += _field(2, b"probe")
    graph += b"".join(_field(5, _tensor(name, array)) for name, array in constants.items())
    graph += b"".join(_field(11, _value(name, dtype, shape)) for name, (dtype, shape) in inputs.items())
    graph += _field(12, _value(*output))
    opset = _number(2, OPSET)
    return _number(1, IR_VERSION) + _field(7, graph) + _field(8, opset)


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(tag: int, value: int) -> bytes:
    return _varint(tag << 3) + _varint(value)


def _field(tag: int, payload: bytes) -> bytes:
    return _varint(tag << 3 | 2) + _varint(len(payload)) + payload


def _node(node: Node, index: int) -> bytes:
    body = b"".join(_field(1, name.encode()) for name in node.inputs)
    body += _field(2, node.output.encode()) + _field(3, f"{node.operator}_{index}".encode())
    body += _field(4, node.operator.encode())
    return body + b"".join(_field(5, _attribute(name, value)) for name, value in node.attributes.items())


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    head = _field(1, name.encode())
    if isinstance(value, int):
        return head + _number(3, value) + _number(20, 2)
    return head + b"".join(_number(8, item) for item in value) + _number(20, 7)


def _tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_number(1, size) for size in array.shape)
    kind = _number(2, ELEMENT_TYPES[array.dtype.name])
    return dims + kind + _field(8, name.encode()) + _field(9, np.ascontiguousarray(array).tobytes())


def _value(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _number(1, size)) for size in shape)
    tensor = _number(1, ELEMENT_TYPES[dtype]) + _field(2, dims)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))

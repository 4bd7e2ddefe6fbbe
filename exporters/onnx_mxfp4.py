"""MXFP4 weights in an ONNX file: 4.25 bits a weight on disk, decoded by standard operators of opset 18.

    packed uint8 [O, I/2]  - BitwiseAnd 15, BitShift right 4 - Concat - Cast int32 - Gather(16 values) - Reshape - Mul
    scales uint8 [O, I/32] - Cast float - Sub 127 - Pow(2, .) ----------------------------------------------------/

All of it is constant: a runtime that folds constants when it loads the file (ONNX Runtime does, by default) decodes
once, and then has float weights in memory. A server with MX kernels reads the same bytes and scales.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgekit.errors import ExportError
from edgekit.model import Model
from edgekit.quantizers.mxfp4 import BIAS, BLOCK, VALUES, encode, pack


def hold_weights(converted: ir.Model, model: Model) -> dict[str, np.ndarray]:
    """Makes inputs of the recorded float weights, in place, so that no simplification transposes or folds them.

    Raises ExportError for a weight that the graph does not have.
    """
    record = model.quantization
    assert record is not None
    graph, held = converted.graph, {}
    for name in record.weights:
        if name not in graph.initializers:
            raise ExportError(f"the ONNX graph has no weight {name!r}", hint="export in fp32")
        value = graph.initializers.pop(name)
        assert value.const_value is not None
        held[name], value.const_value = np.ascontiguousarray(value.const_value.numpy()), None
        graph.inputs.append(value)
    return held


def store_mxfp4(graph: ir.Graph, held: dict[str, np.ndarray]) -> None:
    """Puts packed bytes, scales and their decoder in the place of the held weights [O, I], in place."""
    for value in [one for one in graph.inputs if one.name in held]:
        decoder = _decoder(graph, str(value.name), held[str(value.name)])
        graph.insert_before(graph[0], decoder)
        for node, position in list(value.uses()):
            node.replace_input_with(position, decoder[-1].outputs[0])
        graph.inputs.remove(value)


def _decoder(graph: ir.Graph, name: str, weight: np.ndarray) -> list[ir.Node]:
    """`weight` [O, I], I a multiple of 32, already on an MXFP4 grid."""
    import torch

    outputs, inputs = weight.shape
    codes, scales = encode(torch.from_numpy(weight))
    stem = name.replace(".", "_")
    packed = _constant(graph, f"{stem}_mxfp4", pack(codes)[..., None])
    shared = _constant(graph, f"{stem}_e8m0", scales[..., None])
    low = ir.node("BitwiseAnd", [packed, _constant(graph, "mxfp4_low", np.array(15, np.uint8))])
    high = ir.node(
        "BitShift", [packed, _constant(graph, "mxfp4_four", np.array(4, np.uint8))], attributes={"direction": "RIGHT"}
    )
    pairs = ir.node("Concat", [low.outputs[0], high.outputs[0]], attributes={"axis": 2})
    index = ir.node("Cast", [pairs.outputs[0]], attributes={"to": ir.DataType.INT32})
    values = ir.node("Gather", [_constant(graph, "mxfp4_values", VALUES), index.outputs[0]])
    grouped = np.array([outputs, inputs // BLOCK, BLOCK], np.int64)
    blocks = ir.node("Reshape", [values.outputs[0], _constant(graph, f"{stem}_blocks", grouped)])
    numbers = ir.node("Cast", [shared], attributes={"to": ir.DataType.FLOAT})
    exponents = ir.node("Sub", [numbers.outputs[0], _constant(graph, "e8m0_bias", np.array(BIAS, np.float32))])
    powers = ir.node("Pow", [_constant(graph, "mxfp4_two", np.array(2, np.float32)), exponents.outputs[0]])
    scaled = ir.node("Mul", [blocks.outputs[0], powers.outputs[0]])
    whole = ir.node("Reshape", [scaled.outputs[0], _constant(graph, f"{stem}_shape", np.array(weight.shape, np.int64))])
    nodes = [low, high, pairs, index, values, blocks, numbers, exponents, powers, scaled, whole]
    for place, node in enumerate(nodes):
        node.name = f"{stem}_decode_{place}"
    whole.outputs[0].dtype, whole.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(weight.shape)
    return nodes


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value

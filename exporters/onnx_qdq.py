"""What ONNX Runtime's kernels ask of a QDQ graph beyond what torch.onnx writes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

INT32 = np.iinfo(np.int32)


def transpose_weights(graph: ir.Graph) -> None:
    """Transpose(DequantizeLinear(weight)) becomes DequantizeLinear(transposed weight), in place.

    A dequantized constant is not folded, so the transpose of a linear layer's weight would run at every call and
    stand between the integers and the MatMul that is to take them.
    """
    for node in list(graph):
        dequantize = None if node.op_type != "Transpose" or node.inputs[0] is None else node.inputs[0].producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or "block_size" in dequantize.attributes:
            continue
        stored = dequantize.inputs[0]
        if stored is None or stored.const_value is None or stored.const_value.numpy().ndim != 2:
            continue
        weight = np.ascontiguousarray(stored.const_value.numpy().T)
        flipped = _initializer(graph, f"{stored.name}_t", weight)
        axis = dequantize.attributes.get_int("axis", 1)
        inputs = [flipped, *dequantize.inputs[1:]]
        restored = ir.node(
            "DequantizeLinear", inputs, attributes={"axis": 1 - axis % 2}, name=f"{node.name}_dequantize"
        )
        restored.outputs[0].dtype, restored.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(weight.shape)
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [restored], list(node.outputs), list(restored.outputs)
        )
        if not dequantize.outputs[0].uses():
            graph.remove(dequantize, safe=True)


def quantize_biases(graph: ir.Graph) -> None:
    """Float biases of integer layers become int32 on the accumulator's grid, in place.

    Scale = input scale x weight scale, zero point 0, so the bias is added before requantization. ONNX Runtime's
    QLinearConv and QGemm need this form. A bias past int32 on that grid stays float, and so does its layer.
    """
    for node in list(graph):
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.inputs) < 3:
            continue
        bias = node.inputs[2]
        scale = _accumulator_scale(node)
        if bias is None or bias.const_value is None or bias.dtype != ir.DataType.FLOAT or scale is None:
            continue
        values = bias.const_value.numpy().reshape(-1)
        if scale.size not in (1, values.size):
            continue
        integers = np.rint(values.astype(np.float64) / scale)
        if (np.abs(integers) > INT32.max).any():
            continue
        stored = _initializer(graph, f"{bias.name}_int32", integers.astype(np.int32))
        scales = _initializer(graph, f"{bias.name}_scale", scale.astype(np.float32) if scale.size > 1 else scale[0])
        attributes = {"axis": 0} if scale.size > 1 else {}
        restored = ir.node("DequantizeLinear", [stored, scales], attributes=attributes, name=f"{bias.name}_dequantize")
        restored.outputs[0].dtype, restored.outputs[0].shape = ir.DataType.FLOAT, bias.shape
        graph.insert_before(node, restored)
        node.replace_input_with(2, restored.outputs[0])


def drop_unread(graph: ir.Graph) -> None:
    """Forgets the initializers that no node reads any more, in place: what a rewrite has replaced."""
    outputs = set(graph.outputs)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]


def _accumulator_scale(node: ir.Node) -> np.ndarray | None:
    """[channels] or [1], float32 products as ONNX Runtime multiplies them; None unless both inputs are integers."""
    scales = []
    for value in node.inputs[:2]:
        producer = None if value is None else value.producer()
        if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[1] is None:
            return None
        constant = ir.convenience.get_const_tensor(producer.inputs[1])
        if constant is None:
            return None
        scales.append(constant.numpy().astype(np.float32).reshape(-1))
    return scales[0] * scales[1] if scales[0].size == 1 else None


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value

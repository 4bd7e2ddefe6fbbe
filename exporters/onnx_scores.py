"""Products of two activations in the form that ONNX Runtime runs in integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

MOVES = ("Transpose", "Reshape")


def free_products(graph: ir.Graph) -> None:
    """Exactly the same numbers but for the order of factors, in place.

    Signed activations are quantized in front of the moves that lead to their product. On x86 ONNX Runtime makes each
    signed QuantizeLinear unsigned whose DequantizeLinear follows at once, and unsigned times unsigned is slow. What the
    scores are multiplied by goes into the step of their left operand: ONNX Runtime would take it into a float product.
    """
    for node in list(graph):
        if node.op_type == "QuantizeLinear" and node.outputs[0].dtype == ir.DataType.INT8:
            _quantize_early(graph, node)
        elif node.op_type in ("Mul", "Div"):
            _fold_factor(graph, node)


def _quantize_early(graph: ir.Graph, quantize: ir.Node) -> None:
    moves: list[ir.Node] = []
    value = quantize.inputs[0]
    while value is not None and len(value.uses()) == 1:
        producer = value.producer()
        if producer is None or producer.op_type not in MOVES:
            break
        moves.append(producer)
        value = producer.inputs[0]
    if not moves or quantize.outputs[0].is_graph_output():
        return
    source = moves[-1].inputs[0]
    assert source is not None
    early = ir.node("QuantizeLinear", [source, *quantize.inputs[1:]], name=f"{quantize.name}_early")
    early.outputs[0].dtype, early.outputs[0].shape = ir.DataType.INT8, source.shape
    graph.insert_before(moves[-1], early)
    moves[-1].replace_input_with(0, early.outputs[0])
    for move in moves:
        move.outputs[0].dtype = ir.DataType.INT8
    ir.convenience.replace_all_uses_with(quantize.outputs[0], moves[0].outputs[0])
    graph.remove(quantize, safe=True)


def _fold_factor(graph: ir.Graph, node: ir.Node) -> None:
    """Mul or Div by a number behind MatMul(DequantizeLinear, DequantizeLinear)."""
    product = None if node.inputs[0] is None else node.inputs[0].producer()
    factor = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
    if product is None or product.op_type != "MatMul" or factor is None or factor.numpy().size != 1:
        return
    left, right = (None if value is None else value.producer() for value in product.inputs)
    if any(one is None or one.op_type != "DequantizeLinear" for one in (left, right)):
        return
    assert left is not None and left.inputs[1] is not None
    scale = ir.convenience.get_const_tensor(left.inputs[1])
    number = float(factor.numpy().reshape(()))
    alone = len(product.outputs[0].uses()) == 1 and len(left.outputs[0].uses()) == 1
    positive = number > 0 and scale is not None and scale.numpy().size == 1
    if not alone or not positive or product.outputs[0].is_graph_output() or node.outputs[0].is_graph_output():
        return
    assert scale is not None
    step = scale.numpy() * np.float32(number if node.op_type == "Mul" else 1 / number)
    tensor = ir.tensor(step.astype(np.float32), name=f"{left.name}_scale")
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    left.replace_input_with(1, value)
    ir.convenience.replace_all_uses_with(node.outputs[0], product.outputs[0])
    graph.remove(node, safe=True)

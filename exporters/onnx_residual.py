"""Residual additions in the form that ONNX Runtime's CPU kernels are fast in."""

from __future__ import annotations

import onnx_ir as ir


def separate_residuals(graph: ir.Graph) -> int:
    """Add(stream, branch) -> LayerNormalization: the Add becomes a Sum of two, in place; how many did.

    The numbers are the same. ONNX Runtime fuses the Add into SkipLayerNormalization, whose CPU kernel is scalar:
    6 to 8 times as slow as its LayerNormalization and addition one after the other, a fifth of an int8 MiniLM. It
    does not fuse a Sum. Only float32: the CPU has no Sum in half precision.
    """
    changed = 0
    for node in list(graph):
        if node.op_type != "Add" or node.domain != "" or not _normalised(node) or not _plain(node):
            continue
        total = ir.node("Sum", list(node.inputs), name=node.name)
        total.outputs[0].shape, total.outputs[0].dtype = node.outputs[0].shape, node.outputs[0].dtype
        ir.convenience.replace_nodes_and_values(graph, node, [node], [total], list(node.outputs), list(total.outputs))
        changed += 1
    return changed


def _normalised(node: ir.Node) -> bool:
    readers = (usage.node for usage in node.outputs[0].uses())
    return any(reader.op_type == "LayerNormalization" and reader.domain == "" for reader in readers)


def _plain(node: ir.Node) -> bool:
    """Both terms are float32 activations: a constant is a bias, and integers behind a term want their Add."""
    for term in node.inputs:
        if term is None or term.const_value is not None or term.dtype != ir.DataType.FLOAT:
            return False
        producer = term.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            return False
    return True

"""Weights on grids of 4 bits, stored as ONNX's int4 where a kernel wants int8: half the file, the same kernels."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

INT4_OPSET = 21


def store_in_four_bits(graph: ir.Graph, weights: set[str]) -> int:
    """The int8 initializers of `weights` (parameter names) become int4 behind a Cast to int8, in place; returns how
    many.

    A runtime folds the Cast when it loads the file, and finds the int8 weight that its integer kernels take.
    """
    stored = 0
    lowered = {weight.replace(".", "_") + ending for weight in weights for ending in ("_int8", "_int8_t")}
    for name in list(graph.initializers):
        value = graph.initializers[name]
        if name not in lowered or value.const_value is None or not value.uses():
            continue
        integers = value.const_value.numpy()
        if integers.dtype != np.int8 or np.abs(integers).max(initial=0) > 7:
            continue
        tensor = ir.tensor(integers.astype(ml_dtypes.int4), name=f"{name}_packed")
        packed = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(packed)
        cast = ir.node("Cast", [packed], attributes={"to": ir.DataType.INT8}, name=f"{name}_unpack")
        cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.INT8, value.shape
        readers = [node for node, _ in value.uses()]
        graph.insert_before(min(readers, key=list(graph).index), cast)
        for node, position in list(value.uses()):
            node.replace_input_with(position, cast.outputs[0])
        del graph.initializers[name]
        stored += 1
    return stored

"""Integer weights in an ONNX graph: dynamic int8 for the CPU, and weights alone in 8 or 4 bits.

The integers and scales are those of the Quantization record; nothing is calibrated or rounded anew here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from edgekit.errors import ExportError
from edgekit.model import Model
from edgekit.quantization import Quantization, WeightGrid
from edgekit.quantizers.grids import quantize_weight


def quantize_weights(converted: ir.Model, model: Model) -> list[str]:
    """Replaces the recorded float weights in place; returns the weights that stay float, for the report.

    int8-dynamic writes DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul, which ONNX Runtime fuses into
    DynamicQuantizeMatMul or MatMulIntegerToFloat; activations are asymmetric uint8 per tensor (what
    DynamicQuantizeLinear defines). Weight-only writes DequantizeLinear (blocked where the grid has groups), which
    ONNX Runtime fuses into MatMulNBits. Raises ExportError for a weight that the graph does not have.
    """
    record = model.quantization
    assert record is not None
    return _Rewriter(converted.graph, record, model).run()


@dataclass
class _Rewriter:
    graph: ir.Graph
    record: Quantization
    model: Model
    _quantized_inputs: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = field(default_factory=dict)

    def run(self) -> list[str]:
        tensors = {**dict(self.model.module.named_parameters()), **dict(self.model.module.named_buffers())}
        kept = []
        for name, grid in self.record.weights.items():
            if name not in self.graph.initializers:
                raise ExportError(f"the ONNX graph has no weight {name!r}", hint="export in fp32")
            value = self.graph.initializers[name]
            lowered = [self._lower(use, value, tensors[name], grid) for use in list(value.uses())]
            if not all(lowered):
                kept.append(name)
        return kept

    def _lower(self, use: ir.Usage, value: ir.Value, weight: torch.Tensor, grid: WeightGrid) -> bool:
        node, position = use
        quantized = quantize_weight(weight, grid).numpy()
        if node.op_type == "Transpose" and weight.dim() == 2:
            readers = list(node.outputs[0].uses())
            if any(reader.op_type != "MatMul" or at != 1 for reader, at in readers):
                return self._dequantize(node, position, quantized, grid)
            for reader, _ in readers:
                self._matmul(reader, value, quantized, grid, None)
            return True
        if node.op_type == "Gemm" and position == 1 and node.attributes.get_int("transB", 0) == 1:
            self._matmul(node, value, quantized, grid, node.inputs[2] if len(node.inputs) > 2 else None)
            return True
        if node.op_type == "Gather" and position == 0 and grid.axis == 0 and grid.group_size is None:
            self._gather(node, value, quantized, grid)
            return True
        return self._dequantize(node, position, quantized, grid)

    def _matmul(
        self, node: ir.Node, weight: ir.Value, quantized: np.ndarray, grid: WeightGrid, bias: ir.Value | None
    ) -> None:
        """x [..., in] times weight [out, in] transposed; `node` (MatMul or Gemm) is replaced."""
        source = node.inputs[0]
        assert source is not None
        if self.record.method == "int8-dynamic" and grid.group_size is None:
            nodes = self._integer_matmul(source, weight, quantized, grid, node)
        else:
            dequantize = self._dequantize_node(f"{weight.name}_t", quantized, grid, transposed=True)
            nodes = [dequantize, ir.node("MatMul", [source, dequantize.outputs[0]], name=node.name)]
        if bias is not None:
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias], name=f"{node.name}_bias"))
        self._replace(node, nodes)

    def _integer_matmul(
        self, source: ir.Value, weight: ir.Value, quantized: np.ndarray, grid: WeightGrid, node: ir.Node
    ) -> list[ir.Node]:
        fresh: list[ir.Node] = []
        if source not in self._quantized_inputs:
            quantize = ir.node("DynamicQuantizeLinear", [source], num_outputs=3, name=f"{source.name}_quantize")
            self._quantized_inputs[source] = (quantize.outputs[0], quantize.outputs[1], quantize.outputs[2])
            fresh.append(quantize)
        values, scale, point = self._quantized_inputs[source]
        integers = self._initializer(f"{weight.name}_int8", np.ascontiguousarray(quantized.T))
        weight_scale = self._initializer(f"{weight.name}_scale", _scales(grid))
        inputs = [values, integers, point]
        if grid.zero_point.any():
            inputs.append(self._initializer(f"{weight.name}_zero_point", grid.zero_point.numpy().astype(np.int8)))
        product = ir.node("MatMulInteger", inputs, name=f"{node.name}_integer")
        scales = ir.node("Mul", [scale, weight_scale], name=f"{node.name}_scales")
        cast = ir.node("Cast", [product.outputs[0]], attributes={"to": ir.DataType.FLOAT}, name=f"{node.name}_cast")
        scaled = ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=node.name)
        return [*fresh, product, scales, cast, scaled]

    def _gather(self, node: ir.Node, weight: ir.Value, quantized: np.ndarray, grid: WeightGrid) -> None:
        """An embedding table: rows and their scales are looked up, then multiplied. Zero points are zero."""
        if grid.zero_point.any():
            raise ExportError(f"the table {weight.name!r} has zero points", hint="quantize embeddings symmetrically")
        indices = node.inputs[1]
        assert indices is not None
        table = self._initializer(f"{weight.name}_rows_int8", quantized)
        scales = self._initializer(f"{weight.name}_row_scale", grid.scale.numpy().astype(np.float32).reshape(-1, 1))
        rows = ir.node("Gather", [table, indices], attributes={"axis": 0}, name=f"{node.name}_rows")
        row_scales = ir.node("Gather", [scales, indices], attributes={"axis": 0}, name=f"{node.name}_scales")
        cast = ir.node("Cast", [rows.outputs[0]], attributes={"to": ir.DataType.FLOAT}, name=f"{node.name}_cast")
        scaled = ir.node("Mul", [cast.outputs[0], row_scales.outputs[0]], name=node.name)
        self._replace(node, [rows, row_scales, cast, scaled])

    def _dequantize(self, node: ir.Node, position: int, quantized: np.ndarray, grid: WeightGrid) -> bool:
        """Any other reader: the weight is restored in its own layout. Dynamic int8 leaves such layers float."""
        if self.record.method == "int8-dynamic":
            return False
        old = node.inputs[position]
        assert old is not None
        dequantize = self._dequantize_node(str(old.name), quantized, grid, transposed=False)
        self.graph.insert_before(node, dequantize)
        node.replace_input_with(position, dequantize.outputs[0])
        return True

    def _dequantize_node(self, name: str, quantized: np.ndarray, grid: WeightGrid, *, transposed: bool) -> ir.Node:
        flip: Callable[[np.ndarray], np.ndarray] = np.transpose if transposed else (lambda array: array)
        dtype = ml_dtypes.int4 if grid.bits == 4 else np.int8
        scale = grid.scale.numpy().astype(np.float32)
        inputs = [
            self._initializer(f"{name}_int{grid.bits}", np.ascontiguousarray(flip(quantized)).astype(dtype)),
            self._initializer(f"{name}_scale", np.ascontiguousarray(flip(scale))),
        ]
        if grid.zero_point.any():
            points = np.ascontiguousarray(flip(grid.zero_point.numpy())).astype(dtype)
            inputs.append(self._initializer(f"{name}_zero_point", points))
        attributes: dict[str, int] = {}
        if grid.group_size is not None:
            attributes = {"axis": 0 if transposed else 1, "block_size": grid.group_size}
        elif grid.axis is not None:
            attributes = {"axis": 1 - grid.axis if transposed else grid.axis}
        node = ir.node("DequantizeLinear", inputs, attributes=attributes, name=f"{name}_dequantize")
        node.outputs[0].dtype = ir.DataType.FLOAT
        node.outputs[0].shape = ir.Shape(flip(quantized).shape)
        return node

    def _initializer(self, name: str, array: np.ndarray) -> ir.Value:
        known = self.graph.initializers.get(name)
        if known is not None:
            return known
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def _replace(self, node: ir.Node, nodes: list[ir.Node]) -> None:
        last = nodes[-1].outputs[0]
        last.shape, last.dtype = node.outputs[0].shape, node.outputs[0].dtype
        ir.convenience.replace_nodes_and_values(self.graph, node, [node], nodes, list(node.outputs), [last])


def _scales(grid: WeightGrid) -> np.ndarray:
    """[out] per channel, [1] per tensor."""
    scales: np.ndarray = grid.scale.numpy().astype(np.float32).reshape(-1)
    return scales

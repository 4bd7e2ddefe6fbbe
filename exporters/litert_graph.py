"""Graph forms that litert-torch lowers well: quantized weights as float behind quantize nodes, NHWC images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed

# dequantize -> (the operator that undoes it, how many of its arguments that operator shares)
INVERSES = {
    "quantized_decomposed.dequantize_per_channel.default": "quantize_per_channel",
    "quantized_decomposed.dequantize_per_tensor.default": "quantize_per_tensor",
}

DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
PRODUCTS = (aten.matmul.default, aten.bmm.default)
PADDINGS = ("aten.pad.default", "aten.constant_pad_nd.default")


def unfold_weights(graph: GraphModule) -> GraphModule:
    """int8 constant -> dequantize becomes float constant -> quantize -> dequantize, in place.

    The converter folds the pair itself and refuses a folded one. The float values lie on the grid, so that it finds
    the same integers again.
    """
    for node in list(graph.graph.nodes):
        inverse, args = INVERSES.get(str(node.target)), _arguments(node)
        if inverse is None or args[0].op != "get_attr":
            continue
        stored = read_tensor(graph, args[0])
        rest = [read_tensor(graph, arg) if isinstance(arg, Node) else arg for arg in args[1:]]
        value = getattr(qd, inverse.replace("quantize", "dequantize"))(stored, *rest)
        name = f"{str(args[0].target).replace('.', '_')}_on_grid"
        graph.register_buffer(name, value)
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
            packed = graph.graph.call_function(getattr(qd, inverse).default, (constant, *args[1:]))
        constant.meta["val"], packed.meta["val"] = value, stored
        node.update_arg(0, packed)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def quantize_paddings(graph: GraphModule) -> GraphModule:
    """dequantize -> pad -> layer becomes dequantize -> pad -> quantize -> dequantize -> layer, in place.

    The converter moves a padding to NHWC only when integers stand on both sides of it; padding with zero keeps the
    grid, since a grid holds zero exactly.
    """
    for node in list(graph.graph.nodes):
        if str(node.target) not in PADDINGS or str(_arguments(node)[0].target) != DEQUANTIZE:
            continue
        grid = _arguments(node)[0].args[1:]
        with graph.graph.inserting_after(node):
            packed = graph.graph.call_function(qd.quantize_per_tensor.default, (node, *grid))
        with graph.graph.inserting_after(packed):
            unpacked = graph.graph.call_function(qd.dequantize_per_tensor.default, (packed, *grid))
        packed.meta.update(node.meta)
        unpacked.meta.update(node.meta)
        node.replace_all_uses_with(unpacked, delete_user_cb=lambda user, packed=packed: user is not packed)
    graph.recompile()
    return graph


def add_up_constant_rows(graph: GraphModule) -> GraphModule:
    """A constant row times a matrix becomes a sum of the matrix's scaled rows, in place.

    The converter takes a constant on either side of a product for weights, quantizes it to 8 bits where layers are
    dynamic, and then refuses its own product where it stands on the left.
    """
    constants: set[Node] = set()
    for node in list(graph.graph.nodes):
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and constants.issuperset(inputs)):
            constants.add(node)
        elif node.target in PRODUCTS and node.args[0] in constants and node.args[0].meta["val"].shape[-2] == 1:
            with graph.graph.inserting_before(node):
                column = graph.graph.call_function(aten.transpose.int, (node.args[0], -2, -1))
                scaled = graph.graph.call_function(aten.mul.Tensor, (column, node.args[1]))
                summed = graph.graph.call_function(aten.sum.dim_IntList, (scaled, [-2], True))
            summed.meta.update(node.meta)
            node.replace_all_uses_with(summed)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def teach_layout_of_paddings() -> None:
    """Adds constant padding to the operators that litert-torch can lay out as NHWC.

    Without it each padding between convolutions stays NCHW, between two transposes.
    """
    from litert_torch._convert.fx_passes.optimize_layout_transposes_pass import layout_rewrite

    operator = torch.ops.aten.constant_pad_nd.default
    if operator not in layout_rewrite.rewriters:
        layout_rewrite.rewriters.register(operator)(_pad_as_nhwc)


def _pad_as_nhwc(node: Node) -> None:
    """Amounts come in pairs from the last dimension on, [W, H, C, N] for NCHW, and [C, W, H, N] for NHWC."""
    amounts = [*_arguments(node)[1], 0, 0, 0, 0, 0, 0, 0, 0][:8]
    width, height, channels, batch = amounts[0:2], amounts[2:4], amounts[4:6], amounts[6:8]
    node.update_arg(1, [*channels, *width, *height, *batch])


def _arguments(node: Node) -> tuple[Any, ...]:
    return node.args


def read_tensor(graph: GraphModule, node: Node) -> Tensor:
    """The parameter or buffer that a get_attr node reads."""
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(owner), name)
    assert isinstance(value, Tensor)
    return value


def embedding_tables(graph: GraphModule) -> list[np.ndarray]:
    """The float tables that embeddings read, [rows, width] each."""
    nodes = [node for node in graph.graph.nodes if node.target is torch.ops.aten.embedding.default]
    stored = [_arguments(node)[0] for node in nodes]
    return [read_tensor(graph, node).detach().float().numpy() for node in stored if node.op == "get_attr"]


def in_single_precision(graph: GraphModule) -> GraphModule:
    """A half-precision graph computing in float32, in place: LiteRT's CPU kernels have no half arithmetic of their own.

    Constants are widened exactly; casts to half and half-typed factories become float32.
    """
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = read_tensor(graph, node)
            if value.dtype == torch.float16:
                _replace_tensor(graph, node, value.float())
        node.args, node.kwargs = torch.fx.node.map_aggregate((node.args, node.kwargs), _widen)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _widen(argument: Any) -> Any:
    return torch.float32 if argument is torch.float16 else argument


def _replace_tensor(graph: GraphModule, node: Node, value: Tensor) -> None:
    owner, _, name = str(node.target).rpartition(".")
    module = graph.get_submodule(owner)
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[name] = value

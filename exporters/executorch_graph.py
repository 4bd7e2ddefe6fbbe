"""Graph forms that XNNPACK takes: attention as plain products, means that keep their dimensions, integer tables."""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.quantization import Quantization
from edgekit.quantizers.anatomy import add_tensor, drop_unused_tensors, tensor_named
from edgekit.quantizers.grids import quantize_weight
from edgekit.quantizers.tables import embedding_tables

aten = torch.ops.aten
QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def keep_mean_dimensions(graph: GraphModule) -> GraphModule:
    """A 4-dimensional mean over (2, 3) becomes one that keeps its dimensions, then flattened; in place.

    Where the mean is quantized its integers are flattened between a second pair of the same grid, which changes none.
    """
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target is aten.mean.dim and _is_spatial(node):
            _keep(graph, node)
    graph.graph.lint()
    graph.recompile()
    return graph


def look_up_integers(graph: GraphModule, record: Quantization) -> GraphModule:
    """Look-ups in a table that `record` has a grid a row for take int8 rows and their scales, in place.

    Looked up by the portable kernel, which takes any type; ExecuTorch's own embedding_byte is in a library that not
    every build of the runtime links.
    """
    for name, lookups in embedding_tables(graph).items():
        grid = record.weights.get(name)
        if grid is None:
            continue
        table = quantize_weight(tensor_named(graph, name), grid)
        for node in lookups:
            stored = add_tensor(graph, f"{name}_int8", table, node)
            scales = add_tensor(graph, f"{name}_scale", grid.scale.float().reshape(-1, 1), node)
            with graph.graph.inserting_before(node):
                rows, factors = (
                    graph.graph.call_function(aten.embedding.default, (part, node.args[1])) for part in (stored, scales)
                )
                floats = graph.graph.call_function(aten.to.dtype, (rows, torch.float32))
                scaled = graph.graph.call_function(aten.mul.Tensor, (floats, factors))
            scaled.meta.update(node.meta)
            node.replace_all_uses_with(scaled)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    drop_unused_tensors(graph)
    graph.recompile()
    return graph


def _is_spatial(node: Node) -> bool:
    args: tuple[Any, ...] = node.args
    source, dims = args[0].meta.get("val"), args[1]
    keeps = args[2] if len(args) > 2 else node.kwargs.get("keepdim", False)
    if not isinstance(source, Tensor) or source.dim() != 4 or keeps or node.kwargs.get("dtype") is not None:
        return False
    return sorted(dim % 4 for dim in dims) == [2, 3]


def _keep(graph: GraphModule, node: Node) -> None:
    users = list(node.users)
    packs = [user for user in users if user.target is QUANTIZE]
    node.args = (node.args[0], node.args[1], True)
    node.kwargs = {}
    nodes = graph.graph
    last = node
    if len(users) == 1 and packs:
        grid = packs[0].args[1:]
        with nodes.inserting_before(packs[0]):
            packed = nodes.call_function(QUANTIZE, (node, *grid))
            last = nodes.call_function(DEQUANTIZE, (packed, *grid))
    with nodes.inserting_before(users[0]) if last is not node else nodes.inserting_after(node):
        flat = nodes.call_function(aten.flatten.using_ints, (last, 1))
    flat.meta["val"] = node.meta.get("val")
    for user in users:
        user.replace_input_with(node, flat)


def open_attention(graph: GraphModule) -> GraphModule:
    """Attention becomes a call of `attention`, which the next torch.export traces into products and a softmax.

    torch's own decomposition guards rows without any key by comparisons that only slow portable kernels run.
    """
    for node in graph.graph.nodes:
        if node.target is aten.scaled_dot_product_attention.default:
            node.target = attention
    graph.recompile()
    return graph


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """query [B, H, N, D], key [B, H, M, D], value [B, H, M, E] -> [B, H, N, E], as torch's in eval mode.

    Finite numbers stand in for minus infinity, and what a mask of booleans forbids is multiplied by zero after the
    softmax: a row that may look nowhere gives zeros, like torch.
    """
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    lead, rows, columns = query.shape[:-2], query.shape[-2], key.shape[-2]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if is_causal:
        attn_mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril()
    scores = torch.bmm(_batched(query * factor), _batched(key).transpose(1, 2))
    allowed = None
    if attn_mask is not None:
        scores = scores.reshape(*lead, rows, columns)
        bias = attn_mask
        if attn_mask.dtype == torch.bool:
            allowed = attn_mask.to(query.dtype)
            bias = (allowed - 1.0) * (torch.finfo(query.dtype).max / 2)
        scores = scores + bias
    weights = torch.softmax(scores, -1)
    if allowed is not None:
        weights = weights * allowed
    result = torch.bmm(_batched(weights), _batched(value))
    return result.reshape(*lead, rows, value.shape[-1])


def _batched(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, *tensor.shape[-2:])

"""A float graph in the precision that it is served in: every value cast, or the weights of its products quantized.

    fp32    as it is                     bf16, fp16   weights, activations and constants cast
    int8    products W8A8, the rest float32: weights by output channel, activations by row, at run time
    w4a16   products W4A16, the rest bf16: weights by group of inputs, symmetric

Inputs and outputs keep the part's dtypes: casts stand behind the ones and before the others. What is quantized: a
product with a weight of two dimensions (linear, addmm, mm, matmul); W4A16 where the inputs divide into groups.
LLM.int8(), arXiv:2208.07339, section 2 (by row and channel, without its outlier columns); GPTQ, arXiv:2210.17323,
section 4 (groups; here rounded to nearest under the best of a few clipped ranges, no second-order update).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

DTYPES = {"fp32": torch.float32, "int8": torch.float32, "bf16": torch.bfloat16, "w4a16": torch.bfloat16}
DTYPES["fp16"] = torch.float16
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CODES = 7  # the largest of a symmetric 4-bit grid around 8; -8 is left to values that clipping spares
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)

aten = torch.ops.aten


def in_precision(graph: GraphModule, precision: str) -> tuple[GraphModule, int]:
    """A graph that shares no changed tensor with `graph`, and how many of its products are quantized."""
    found = cast(graph, DTYPES[precision])
    if precision not in ("int8", "w4a16"):
        return found, 0
    return found, _quantize(found, precision)


def cast(graph: GraphModule, dtype: torch.dtype) -> GraphModule:
    """`graph` with every float32 in it as `dtype`, its inputs and outputs as they were; a literal beyond the range of
    `dtype` becomes its largest value. Also to float64, for answers without rounding."""
    found = GraphModule(graph, copy.deepcopy(graph.graph))
    if dtype == torch.float32:
        return found
    _cast_tensors(found, dtype)
    limit = torch.finfo(dtype).max
    for node in list(found.graph.nodes):
        if node.op == "placeholder" and _dtype(node) == torch.float32:
            with found.graph.inserting_after(node):
                inner = found.graph.call_function(aten.to.dtype, (node, dtype))
            inner.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(inner, delete_user_cb=lambda user, inner=inner: user is not inner)
        elif node.op == "call_function":
            node.args, node.kwargs = (_literals(values, dtype, limit) for values in (node.args, node.kwargs))
            if _makes_floats(node):
                node.kwargs = {**node.kwargs, "dtype": dtype}
        elif node.op == "output":
            with found.graph.inserting_before(node):
                node.args = (torch.fx.map_arg(node.args[0], lambda one: _restored(found, one)),)
    found.recompile()
    return found


def _restored(graph: GraphModule, node: Node) -> Node:
    """An output in the dtype that it had."""
    dtype = _dtype(node)
    return graph.graph.call_function(aten.to.dtype, (node, dtype)) if dtype in FLOATS else node


def _cast_tensors(graph: GraphModule, dtype: torch.dtype) -> None:
    known: dict[int, Tensor] = {}
    for name in {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}:
        owner, leaf = _owner(graph, name)
        value = getattr(owner, leaf)
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            if id(value) not in known:
                known[id(value)] = value.detach().to(dtype)
            put(graph, name, known[id(value)])


def put(graph: GraphModule, name: str, value: Tensor) -> None:
    """`value` as the constant `name` of the graph, in the place of a parameter or buffer of that name."""
    owner, leaf = _owner(graph, name)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    owner.register_buffer(leaf, value)


def _owner(graph: GraphModule, name: str) -> tuple[torch.nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return graph.get_submodule(path), leaf


def _dtype(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def _literals(value: Any, dtype: torch.dtype, limit: float) -> Any:
    if value is torch.float32:
        return dtype
    if isinstance(value, float) and limit < abs(value) < float("inf"):
        return limit if value > 0 else -limit
    if isinstance(value, tuple | list):
        return type(value)(_literals(one, dtype, limit) for one in value)
    return {key: _literals(one, dtype, limit) for key, one in value.items()} if isinstance(value, dict) else value


def _makes_floats(node: Node) -> bool:
    """Whether it makes float32 from numbers alone, and leaves the dtype to torch's default."""
    schema = getattr(node.target, "_schema", None)
    takes = schema is not None and any(one.name == "dtype" for one in schema.arguments)
    from_tensors = any(_dtype(source) is not None for source in node.all_input_nodes)
    return takes and not from_tensors and "dtype" not in node.kwargs and _dtype(node) == torch.float32


@dataclass(frozen=True)
class Product:
    """`weight` and `bias` are names of constants; `turned`: the weight is [inputs, outputs]."""

    x: Node
    weight: str
    bias: Node | None
    turned: bool


def product_of(node: Node) -> Product | None:
    """What a node multiplies, where that is a constant of two dimensions; None for anything else."""
    if node.target is aten.linear.default:
        x, weight, bias = (*node.args, None)[:3]
        turned = False
    elif node.target in (aten.mm.default, aten.matmul.default):
        (x, weight), bias, turned = node.args[:2], None, True
    elif node.target is aten.addmm.default and not node.kwargs:
        bias, x, weight = node.args[:3]
        turned = True
    else:
        return None
    is_constant = isinstance(weight, Node) and weight.op == "get_attr" and isinstance(x, Node)
    value = weight.meta.get("val") if is_constant and isinstance(weight, Node) else None
    has_bias = bias is None or (isinstance(bias, Node) and bias.op == "get_attr")
    if not (isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point() and has_bias):
        return None
    assert isinstance(x, Node) and isinstance(weight, Node) and (bias is None or isinstance(bias, Node))
    return Product(x, str(weight.target), bias, turned)


def _quantize(graph: GraphModule, precision: str) -> int:
    from edgekit.runtimes.torch_engine import ops

    operator = ops.linear_w8a8 if precision == "int8" else ops.linear_w4a16
    quantizer = quantize_channels if precision == "int8" else quantize_groups
    known: dict[tuple[str, bool], tuple[str, str] | None] = {}
    count = 0
    for node in list(graph.graph.nodes):
        product = product_of(node)
        if product is None:
            continue
        key = (product.weight, product.turned)
        if key not in known:
            known[key] = _quantized(graph, product, quantizer)
        names = known[key]
        if names is None:
            continue
        with graph.graph.inserting_before(node):
            constants = [graph.graph.get_attr(name) for name in names]
            inner = graph.graph.call_function(operator._opoverload, (product.x, *constants, product.bias))
        inner.meta = dict(node.meta)
        node.replace_all_uses_with(inner)
        graph.graph.erase_node(node)
        count += 1
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    _drop_unused(graph)
    graph.recompile()
    return count


def _quantized(
    graph: GraphModule, product: Product, quantizer: Callable[[Tensor], tuple[Tensor, Tensor] | None]
) -> tuple[str, str] | None:
    """The names of the codes and scales of its weight; None where it cannot be quantized."""
    owner, leaf = _owner(graph, product.weight)
    weight = getattr(owner, leaf).detach()
    found = quantizer(weight.T if product.turned else weight)
    if found is None:
        return None
    side = "turned_" if product.turned else ""
    names = tuple(f"{product.weight}_{side}{what}" for what in ("codes", "scales"))
    for name, value in zip(names, found, strict=True):
        put(graph, name, value.contiguous())
    return names[0], names[1]


def _drop_unused(graph: GraphModule) -> None:
    """Weights that only the product had."""
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    tensors = [name for name, _ in (*graph.named_parameters(), *graph.named_buffers())]
    for name in tensors:
        if name not in used:
            owner, leaf = _owner(graph, name)
            delattr(owner, leaf)


def quantize_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] -> int8 [N, K] and float32 [N]."""
    from edgekit.runtimes.kernels.matmul_int8 import quantize_rows

    return quantize_rows(weight)


def quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """[N, K] -> packed uint8 [N, K / 2] and bf16 [N, K / group], of the smallest group that divides K; None where none
    does. Of each group that range is taken whose rounding and clipping leaves the least squared error."""
    from edgekit.runtimes.kernels.matmul_int4 import CENTRE, GROUPS, pack

    outputs, inputs = weight.shape
    group = next((size for size in sorted(GROUPS) if inputs and inputs % size == 0), None)
    if group is None:
        return None
    groups = weight.float().reshape(outputs, inputs // group, group)
    largest = groups.abs().amax(-1, keepdim=True)
    best, scales = torch.full_like(largest, float("inf")), torch.ones_like(largest)
    for clip in CLIPS:
        # Rounded first to what is stored, so that codes are the best under the scale that multiplies them.
        trial = (largest * clip / CODES).bfloat16().float()
        trial = torch.where(trial > 0, trial, torch.ones_like(trial))
        error = (_codes(groups, trial) * trial - groups).square().sum(-1, keepdim=True)
        scales = torch.where(error < best, trial, scales)
        best = torch.minimum(best, error)
    codes = (_codes(groups, scales) + CENTRE).to(torch.uint8).reshape(outputs, inputs)
    return pack(codes), scales[..., 0].bfloat16()


def _codes(groups: Tensor, scales: Tensor) -> Tensor:
    return torch.clamp(torch.round(groups / scales), -CODES - 1, CODES)

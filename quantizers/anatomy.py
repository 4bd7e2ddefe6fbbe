"""What quantization must know of a captured graph: which nodes multiply by a weight, which only pass values on."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

INTEGERS = {"int8": torch.int8, "uint8": torch.uint8}
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default}
TRANSPOSED_CONVOLUTIONS = {
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
}
PRODUCTS = {aten.mm.default, aten.matmul.default}
ELEMENTWISE = {aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor}
REDUCTIONS = {aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default}
# The output carries the input's values, so that both must lie on one grid.
MOVERS = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.max_pool2d.default,
    aten.slice.Tensor,
    aten.contiguous.default,
    aten.clone.default,
    aten.upsample_nearest2d.vec,
    aten.channel_shuffle.default,
}
CLAMPS = {
    aten.relu.default,
    aten.relu_.default,
    aten.relu6.default,
    aten.relu6_.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.clamp.default,
    aten.clamp_.default,
    aten.clamp_min.default,
    aten.clamp_min_.default,
}
NORMALISATIONS = {
    aten.layer_norm.default,
    aten.scaled_dot_product_attention.default,
    aten.softmax.int,
    aten.rms_norm.default,
}


@dataclass(frozen=True)
class WeightedLayer:
    """A node that multiplies `source` by the parameter `weight`; output channels lie along `axis` of the weight.

    `axis` is None where the target formats have no scale per output channel (grouped transposed convolutions).
    """

    node: Node
    source: Node
    weight_node: Node
    bias_node: Node | None
    axis: int | None

    @property
    def weight(self) -> str:
        return str(self.weight_node.target)

    @property
    def is_convolution(self) -> bool:
        return self.node.target in CONVOLUTIONS

    @property
    def groups(self) -> int:
        return int(argument(self.node, 6, "groups", 1)) if self.is_convolution else 1


def weighted_layer(node: Node) -> WeightedLayer | None:
    """The layer that `node` is; None for any other node, and where the weight is computed rather than stored."""
    axis: int | None
    if node.op != "call_function":
        return None
    if node.target in CONVOLUTIONS or node.target is aten.linear.default:
        source, weight, bias, axis = node.args[0], node.args[1], argument(node, 2, "bias", None), 0
    elif node.target in TRANSPOSED_CONVOLUTIONS:
        source, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias", None)
        axis = 1 if argument(node, 6, "groups", 1) == 1 else None
    elif node.target is aten.addmm.default:
        bias, source, weight = node.args[:3]
        axis = 1
    elif node.target in PRODUCTS:
        source, weight = node.args[:2]
        bias, axis = None, 1
    else:
        return None
    if not (isinstance(weight, Node) and weight.op == "get_attr" and isinstance(source, Node)):
        return None
    if source.op == "get_attr" or (node.target in PRODUCTS and _rank(node, weight) != 2):
        return None
    return WeightedLayer(node, source, weight, bias if isinstance(bias, Node) else None, axis)


def normalises_by_layer(graph: GraphModule) -> bool:
    """Whether it is a transformer or made like one: its residual streams carry outliers."""
    return any(node.target in NORMALISATIONS for node in graph.graph.nodes)


def weighted_layers(graph: GraphModule) -> list[WeightedLayer]:
    found = (weighted_layer(node) for node in graph.graph.nodes)
    return [layer for layer in found if layer is not None and layer_weight(graph, layer).is_floating_point()]


def layer_weight(graph: GraphModule, layer: WeightedLayer) -> Tensor:
    return tensor_named(graph, layer.weight)


def layer_mflops(graph: GraphModule, layer: WeightedLayer) -> float:
    """Of one inference."""
    weight, value = layer_weight(graph, layer), layer.node.meta["val"]
    channels = weight.shape[layer.axis or 0]
    return 2 * weight.numel() / channels * math.prod(_counted(size) for size in value.shape) / 1e6


def _counted(size: int | torch.SymInt) -> int:
    """A dynamic size as the example had it. int() of it would fix it to that in every graph that shares it."""
    return int(size.node.hint or 1) if isinstance(size, torch.SymInt) else size


def argument(node: Node, position: int, name: str, default: Any) -> Any:
    """The value of one argument, however it was passed."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def clamp_bounds(node: Node) -> tuple[float, float] | None:
    """What values `node` lets through, where it is a clamp with constant bounds; None otherwise."""
    if node.op != "call_function" or node.target not in CLAMPS:
        return None
    name = str(node.target).split(".")[1].rstrip("_")
    if name == "relu":
        return 0.0, float("inf")
    if name == "relu6":
        return 0.0, 6.0
    if name == "hardtanh":
        return float(argument(node, 1, "min_val", -1.0)), float(argument(node, 2, "max_val", 1.0))
    low = argument(node, 1, "min", None)
    high = argument(node, 2, "max", None) if name == "clamp" else None
    if isinstance(low, Node) or isinstance(high, Node):
        return None
    return float("-inf") if low is None else float(low), float("inf") if high is None else float(high)


def is_zero_pad(node: Node) -> bool:
    """A padding with zeros, which a convolution behind it takes in: it needs no grid of its own."""
    if node.op != "call_function":
        return False
    if node.target is aten.constant_pad_nd.default:
        return bool(argument(node, 2, "value", 0) == 0)
    return bool(
        node.target is aten.pad.default
        and argument(node, 2, "mode", "constant") == "constant"
        and not argument(node, 3, "value", None)
    )


def through_padding(node: Node) -> Node:
    """The node whose values arrive: behind a chain of zero paddings that only one node reads."""
    while is_zero_pad(node) and len(node.users) == 1:
        node = node.args[0]  # type: ignore[assignment]
    return node


def fused_source(node: Node) -> Node | None:
    """What a clamp clamps, where nothing else reads it: its maker can clamp by itself. None for any other node."""
    if clamp_bounds(node) is None:
        return None
    source = node.all_input_nodes[0]
    return source if len(source.users) == 1 else None


def reading_ends(node: Node) -> list[Node]:
    """The nodes that touch the inputs of the layer `node`: itself, or the first of the paddings in front of it."""
    ends = []
    for source in node.all_input_nodes:
        end, origin = node, source
        while through_padding(origin) is not origin:
            end, origin = origin, origin.all_input_nodes[0]
        ends.append(end)
    return ends


def attribute_named(graph: GraphModule, name: str) -> Any:
    """What a get_attr node with this target reads: mostly a tensor, sometimes a structure or a submodule."""
    return functools.reduce(getattr, name.split("."), graph)


def tensor_named(graph: GraphModule, name: str) -> Tensor:
    """A parameter, buffer or constant by the dotted name that a get_attr node has for its target."""
    value = attribute_named(graph, name)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, not a tensor")
    return value


def replace_tensor(graph: GraphModule, name: str, value: Tensor) -> None:
    """Puts a new tensor under `name`; another name that shared the old one keeps the old one."""
    *path, leaf = name.split(".")
    owner: Any = functools.reduce(getattr, path, graph)
    was_buffer = leaf in owner._buffers
    delattr(owner, leaf)
    if was_buffer or not value.is_floating_point():
        owner.register_buffer(leaf, value.detach())
    else:
        owner.register_parameter(leaf, torch.nn.Parameter(value.detach(), requires_grad=False))


def add_tensor(graph: GraphModule, stem: str, value: Tensor, before: Node) -> Node:
    """A get_attr node, placed before `before`, of a new tensor whose name starts with `stem`."""
    name = stem.replace(".", "_")
    while hasattr(graph, name):
        name += "_"
    if value.is_floating_point() and value.dim() > 0 and stem.endswith("bias"):
        graph.register_parameter(name, torch.nn.Parameter(value.detach(), requires_grad=False))
    else:
        graph.register_buffer(name, value.detach())
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(name)
    node.meta["val"] = value
    return node


def drop_unused_tensors(graph: GraphModule) -> None:
    """Forgets the parameters and buffers that no node reads any more."""
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    names = [name for name, _ in graph.named_parameters(remove_duplicate=False)]
    names += [name for name, _ in graph.named_buffers(remove_duplicate=False)]
    for name in names:
        if name not in used:
            *path, leaf = name.split(".")
            delattr(functools.reduce(getattr, path, graph), leaf)


def _rank(node: Node, weight: Node) -> int:
    owner = node.graph.owning_module
    return tensor_named(owner, str(weight.target)).dim() if owner is not None else 0

"""A factor a channel behind a linear layer becomes part of its weight and bias."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgekit.model import Model
from edgekit.passes.base import Pass
from edgekit.passes.fold import forget_unused
from edgekit.progress import Progress

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldLayerScale(Pass):
    """linear(x, W, b) * s -> linear(x, s W, s b) for a stored s [out] or [1], where nothing else reads the product.

    Layer scale (Touvron et al., CaiT, arXiv:2103.17239, section 2), which DINOv2 has behind each branch: two passes
    over the tokens a block less. Float-equivalent up to the rounding of float32.
    """

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        if not any(_factor(model.graph, node) is not None for node in model.graph.graph.nodes):
            return model, "nothing to fold"
        graph = model.copy_graph()
        folded = sum(_fold(graph, node) for node in list(graph.graph.nodes))
        graph.graph.eliminate_dead_code()
        forget_unused(graph)
        graph.graph.lint()
        graph.recompile()
        return replace(model, module=graph), f"{folded} layer scales folded"


def _factor(graph: GraphModule, node: Node) -> tuple[Node, Tensor] | None:
    """(the linear layer, the factors) where `node` multiplies one by stored numbers; None for any other node."""
    if node.op != "call_function" or node.target not in (aten.mul.Tensor, aten.mul_.Tensor) or len(node.args) != 2:
        return None
    for layer, scale in (node.args, node.args[::-1]):
        if not (isinstance(layer, Node) and isinstance(scale, Node) and scale.op == "get_attr"):
            continue
        if layer.target is not aten.linear.default or len(layer.users) != 1:
            continue
        stored = [one for one in layer.args[1:] if isinstance(one, Node)]
        factors = _attribute(graph, scale)
        # a weight that another layer reads too must stay what it is
        if not all(_is_alone(one) for one in stored) or not isinstance(factors, Tensor):
            continue
        weight = _attribute(graph, stored[0])
        if factors.dim() <= 1 and factors.numel() in (1, len(weight)) and factors.dtype == weight.dtype:
            return layer, factors.detach()
    return None


def _is_alone(stored: Node) -> bool:
    """Whether one node, once, reads the tensor under this name."""
    same = [node for node in stored.graph.nodes if node.op == "get_attr" and node.target == stored.target]
    return stored.op == "get_attr" and same == [stored] and len(stored.users) == 1


def _fold(graph: GraphModule, node: Node) -> bool:
    found = _factor(graph, node)
    if found is None:
        return False
    layer, factors = found
    for stored in layer.args[1:]:
        if isinstance(stored, Node):
            value = _attribute(graph, stored)
            shape = (-1,) + (1,) * (value.dim() - 1)
            _replace(graph, stored, value.detach() * factors.reshape(shape))
    node.replace_all_uses_with(layer)
    graph.graph.erase_node(node)
    return True


def _attribute(graph: GraphModule, node: Node) -> Any:
    return functools.reduce(getattr, str(node.target).split("."), graph)


def _replace(graph: GraphModule, node: Node, value: Tensor) -> None:
    """A new parameter under the old name; another name that shared the old tensor keeps it."""
    *path, leaf = str(node.target).split(".")
    owner = functools.reduce(getattr, path, graph)
    delattr(owner, leaf)
    owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    node.meta["val"] = value

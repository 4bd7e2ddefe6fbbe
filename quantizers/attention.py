"""Attention taken apart into products and a softmax, so that each of its operands can lie on a grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule, Node

from edgekit.model import Model
from edgekit.passes.base import Pass
from edgekit.progress import Progress
from edgekit.quantizers.anatomy import argument, aten, weighted_layer

PRODUCTS = {aten.matmul.default, aten.bmm.default}
SOFTMAXES = {aten.softmax.int, aten._softmax.default}


@dataclass(frozen=True)
class Attention:
    """The nodes of one attention: scores = query @ key, probabilities = softmax(scores), mixed = probabilities @ value.

    `key` is transposed already, [.., D, T]. Query may carry the factor 1 / sqrt(D).
    """

    query: Node
    key: Node
    scores: Node
    probabilities: Node
    value: Node
    mixed: Node


@dataclass(frozen=True)
class OpenAttention(Pass):
    """Float-equivalent up to the order of additions. Causal and grouped attention, and boolean masks, stay whole."""

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        graph = model.copy_graph()
        opened = open_attention(graph)
        return replace(model, module=graph), f"{opened} attentions"


def open_attention(graph: GraphModule) -> int:
    """Rewrites scaled_dot_product_attention in place; returns how many."""
    opened = 0
    for node in list(graph.graph.nodes):
        if node.target is aten.scaled_dot_product_attention.default and _is_plain(node):
            _open(graph, node)
            opened += 1
    graph.graph.lint()
    graph.recompile()
    return opened


def _is_plain(node: Node) -> bool:
    mask = argument(node, 3, "attn_mask", None)
    is_additive = mask is None or mask.meta["val"].is_floating_point()
    return is_additive and not (argument(node, 5, "is_causal", False) or argument(node, 7, "enable_gqa", False))


def _open(graph: GraphModule, node: Node) -> None:
    query, key, value = node.args[:3]
    width = query.meta["val"].shape[-1]  # type: ignore[union-attr]
    scale = argument(node, 6, "scale", None)
    with graph.graph.inserting_before(node):
        scaled = _call(graph, aten.mul.Tensor, query, float(width) ** -0.5 if scale is None else scale)
        turned = _call(graph, aten.transpose.int, key, -2, -1)
        scores = _call(graph, aten.matmul.default, scaled, turned)
        mask = argument(node, 3, "attn_mask", None)
        masked = scores if mask is None else _call(graph, aten.add.Tensor, scores, mask)
        mixed = _call(graph, aten.matmul.default, _call(graph, aten.softmax.int, masked, -1), value)
    node.replace_all_uses_with(mixed)
    graph.graph.erase_node(node)


def _call(graph: GraphModule, target: Any, *args: Any) -> Node:
    made = graph.graph.call_function(target, args)
    made.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, Node) else arg for arg in args))
    return made


def attentions(graph: GraphModule) -> Iterator[Attention]:
    """Every open attention; scores may pass a mask, a division or a dropout on their way to the softmax."""
    for node in graph.graph.nodes:
        if node.target not in SOFTMAXES or argument(node, 1, "dim", None) not in (-1, node.meta["val"].dim() - 1):
            continue
        scores = _product_behind(node.args[0])
        readers = [user for user in _through_moves(node) if user.target in PRODUCTS]
        if scores is None or len(readers) != 1:
            continue
        mixed = readers[0]
        probabilities, value = mixed.args[:2]
        query, key = scores.args[:2]
        if all(isinstance(one, Node) and one.op != "get_attr" for one in (query, key, probabilities, value)):
            yield Attention(query, key, scores, probabilities, value, mixed)  # type: ignore[arg-type]


def _product_behind(node: Any) -> Node | None:
    """The product that made `node`, behind elementwise work on it."""
    passed = {
        aten.add.Tensor,
        aten.add_.Tensor,
        aten.div.Tensor,
        aten.mul.Tensor,
        aten.reshape.default,
        aten.view.default,
    }
    while isinstance(node, Node) and node.target in passed:
        node = node.args[0]
    if isinstance(node, Node) and node.target in PRODUCTS and weighted_layer(node) is None:
        return node
    return None


def _through_moves(node: Node) -> list[Node]:
    """Its readers; those behind a dropout, a copy, an idle cast or a reshape in its place."""
    passed = {aten.dropout.default, aten.clone.default, aten.reshape.default, aten.view.default}
    found = []
    for user in node.users:
        if user.target in passed or (user.target is aten.to.dtype and user.meta["val"].dtype == node.meta["val"].dtype):
            found += _through_moves(user)
        else:
            found.append(user)
    return found

"""Folds what is constant at inference into its neighbours: batch normalisation into weights, dropout into nothing."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.errors import NumericsError
from edgekit.model import Model
from edgekit.passes.base import Pass
from edgekit.progress import Progress

aten = torch.ops.aten

# Position of weight, bias, running mean, running variance, eps in each form of eval-mode batch normalisation.
NORMS = {
    aten.batch_norm.default: (1, 2, 3, 4, 7),
    aten._native_batch_norm_legit_no_training.default: (1, 2, 3, 4, 6),
    aten.native_batch_norm.default: (1, 2, 3, 4, 7),
}
TRAINING_FLAG = {aten.batch_norm.default: 5, aten.native_batch_norm.default: 5}
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input}
DROPOUTS = {aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alpha_dropout.default}
IDENTITIES = {aten.alias.default, aten.detach.default, aten.detach_.default, aten.lift_fresh_copy.default}


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """conv + batch norm, transposed conv + batch norm, linear + batch norm -> one layer; eval-mode dropout and
    aliases go. Where a normalisation has no such layer in front of it, it stays.

    Zero paddings that are the same on both sides become the convolution's own.
    """

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        graph = model.copy_graph()
        dropped = sum(_drop_identity(graph, node) for node in list(graph.graph.nodes))
        folded = sum(_fold(graph, node) for node in list(graph.graph.nodes))
        padded = sum(_fold_padding(node) for node in list(graph.graph.nodes))
        if not folded + dropped + padded:
            return model, "nothing to fold"
        graph.graph.eliminate_dead_code()
        forget_unused(graph)
        graph.graph.lint()
        graph.recompile()
        detail = f"{folded} batch norms, {dropped} identities, {padded} paddings folded"
        return replace(model, module=graph), detail


def scale_and_shift(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Batch normalisation at inference as y = scale * x + shift, each [channels], in float64."""
    scale = torch.rsqrt(var.double() + eps)
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def _fold(graph: GraphModule, norm: Node) -> bool:
    if norm.op != "call_function" or norm.target not in NORMS:
        return False
    flag = TRAINING_FLAG.get(norm.target)
    layer = norm.args[0]
    if (flag is not None and norm.args[flag]) or not isinstance(layer, Node) or len(layer.users) != 1:
        return False
    outputs = _outputs(norm)
    axis = _output_axis(layer)
    if axis is None or outputs is None or not _is_constant(layer.args[1]):
        return False
    if len(layer.args) > 2 and layer.args[2] is not None and not _is_constant(layer.args[2]):
        return False
    *places, eps_place = NORMS[norm.target]
    weight, bias, mean, var = (_tensor(graph, norm.args[place]) for place in places)
    assert mean is not None and var is not None
    scale, shift = scale_and_shift(mean, var, weight, bias, float(norm.args[eps_place]))  # type: ignore[arg-type]
    if not (torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        raise NumericsError(f"batch norm {norm.name} has NaN or infinity in its statistics")
    _scale_layer(graph, layer, axis, scale, shift)
    for output in outputs:
        output.replace_all_uses_with(layer)
        if output is not norm:
            graph.graph.erase_node(output)
    graph.graph.erase_node(norm)
    return True


def _scale_layer(graph: GraphModule, layer: Node, axis: int, scale: Tensor, shift: Tensor) -> None:
    weight = _tensor(graph, layer.args[1])
    old_bias = _tensor(graph, layer.args[2]) if len(layer.args) > 2 else None
    assert weight is not None
    groups = 1
    if layer.target in TRANSPOSED:
        groups = int(layer.args[6]) if len(layer.args) > 6 else 1  # type: ignore[arg-type]
    shape = [-1 if dim == axis else 1 for dim in range(weight.dim())]
    if groups > 1:
        # [in, out / groups, ...]: the rows of one group belong to its own output channels.
        per_row = scale.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
        factor = per_row.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))
    else:
        factor = scale.reshape(shape)
    bias = shift if old_bias is None else shift + old_bias.double() * scale
    stem = str(layer.args[1].target).removesuffix("weight")  # type: ignore[union-attr]
    new_weight = _add(graph, f"{stem}weight_folded", (weight.double() * factor).to(weight.dtype), layer)
    new_bias = _add(graph, f"{stem}bias_folded", bias.to(weight.dtype), layer)
    layer.args = (layer.args[0], new_weight, new_bias, *layer.args[3:])


def _drop_identity(graph: GraphModule, node: Node) -> bool:
    if node.op != "call_function":
        return False
    eval_dropout = node.target in DROPOUTS and not (node.args[2] if len(node.args) > 2 else node.kwargs.get("train"))
    if not (eval_dropout or node.target in IDENTITIES):
        return False
    source = node.args[0]
    if not isinstance(source, Node) or source.op == "get_attr":
        return False
    node.replace_all_uses_with(source)
    graph.graph.erase_node(node)
    return True


def _fold_padding(conv: Node) -> bool:
    """pad(x, [w, w, h, h]) -> conv with padding [h, w] on top of its own."""
    if conv.op != "call_function" or conv.target is not aten.conv2d.default:
        return False
    pad = conv.args[0]
    if not isinstance(pad, Node) or pad.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return False
    rest = pad.args[2:]
    if any(value not in ("constant", 0, 0.0, None) for value in rest) or pad.kwargs:
        return False
    amounts = pad.args[1]
    if (
        not isinstance(amounts, (list, tuple))
        or len(amounts) != 4
        or not all(isinstance(a, int) and a >= 0 for a in amounts)
    ):
        return False
    left, right, top, bottom = (int(amount) for amount in amounts)  # type: ignore[arg-type]
    args: list[Any] = [*conv.args, *[None, [1, 1], [0, 0], [1, 1], 1][len(conv.args) - 2 :]]
    if left != right or top != bottom or isinstance(args[4], str):
        return False
    args[0] = pad.args[0]
    args[4] = [args[4][0] + top, args[4][-1] + left]
    conv.args = tuple(args)
    return True


def _outputs(norm: Node) -> list[Node] | None:
    """The nodes that carry the normalised value; None where somebody reads the statistics too."""
    if norm.target is aten.batch_norm.default:
        return [norm]
    users = list(norm.users)
    if any(len(user.args) < 2 or user.args[1] != 0 for user in users):
        return None
    return users


def _output_axis(layer: Node) -> int | None:
    if layer.op != "call_function":
        return None
    if layer.target in CONVOLUTIONS:
        return 0
    if layer.target in TRANSPOSED:
        return 1
    value = layer.meta.get("val")
    # Behind a linear layer the channels of the normalisation are the features only where the output is [N, C].
    two_dimensional = isinstance(value, Tensor) and value.dim() == 2
    return 0 if layer.target is aten.linear.default and two_dimensional else None


def _is_constant(value: object) -> bool:
    return isinstance(value, Node) and value.op == "get_attr"


def _tensor(graph: GraphModule, value: object) -> Tensor | None:
    if not isinstance(value, Node):
        return None
    found: Any = functools.reduce(getattr, str(value.target).split("."), graph)
    assert isinstance(found, Tensor)
    return found.detach()


def _add(graph: GraphModule, name: str, value: Tensor, before: Node) -> Node:
    name = name.replace(".", "_")
    while hasattr(graph, name):
        name += "_"
    graph.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(name)
    node.meta["val"] = value
    return node


def forget_unused(graph: GraphModule) -> None:
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    stored = [name for name, _ in graph.named_parameters(remove_duplicate=False)]
    stored += [name for name, _ in graph.named_buffers(remove_duplicate=False)]
    for name in stored:
        if name not in used:
            *path, leaf = name.split(".")
            delattr(functools.reduce(getattr, path, graph), leaf)

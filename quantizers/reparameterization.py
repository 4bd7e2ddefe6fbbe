"""Channels that each have a grid of their own, written so that one grid a tensor does the same.

Li et al. 2023, RepQ-ViT, arXiv:2212.08254, section 3.2, and Li et al. 2024, RepQuant, arXiv:2402.05628, section 3.2.
A channel c with range [low, high] is mapped onto a range that all share,  y = (x - centre_c) / factor_c:  the layer
norm's weight and bias take both in, the layers behind multiply column c by factor_c and add W centre to their bias.
Float-equivalent. The integers are those of per-channel grids; the zero point has become part of two biases.

Beside the paper's layer norms the same is done where attention's values (rows of their linear layer) reach the
projection, and, without a centre, to a layer whose relu a layer reads. Of the paper's factors (range over mean range)
a power is taken, searched by the output error with weights rounded too: what evens out the activations makes the
columns of the weights uneven, and 4 to 6 bits feel it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.model import Model
from edgekit.passes.base import Pass
from edgekit.progress import Progress
from edgekit.quantization import Scheme
from edgekit.quantizers.anatomy import (
    WeightedLayer,
    argument,
    aten,
    layer_weight,
    replace_tensor,
    tensor_named,
    weighted_layer,
    weighted_layers,
)
from edgekit.quantizers.channels import ChannelTrace, trace_channels
from edgekit.quantizers.clipping import learn_clips, round_between
from edgekit.quantizers.grids import on_grid, weight_grid
from edgekit.quantizers.rows import draw_rows
from edgekit.quantizers.smoothing import REWRITE

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Where few rows were seen other data go beyond every channel's range, which all now end where the grid does.
HEADROOMS = (1.0, 1.1, 1.25, 1.5)


@dataclass(frozen=True)
class Site:
    """An activation that `layers` alone read; its channel c is channel `rows[c]` of what `gain` and `offset` scale.

    `gain`: a layer norm's weight, or a layer's weight with its outputs along the first axis; `offset`: its bias.
    """

    name: str
    layers: tuple[str, ...]
    gain: str
    offset: str
    rows: Tensor
    may_shift: bool


@dataclass(frozen=True)
class Change:
    """What the channels of an activation go through, y = (x - centre) / factor; both [channels].

    `low`, `high`: the range that the one grid of all is to span.
    """

    centre: Tensor
    factor: Tensor
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class Reparameterize(Pass):
    """Float-equivalent. `learn`: each channel's range is clipped first; `powers`: of the factors, to choose from."""

    scheme: Scheme
    keep: frozenset[str] = frozenset()
    learn: bool = True
    powers: tuple[float, ...] = POWERS

    def apply(self, model: Model, progress: Progress) -> tuple[Model, str]:
        sites = find_sites(model, self.keep)
        if not sites or not model.calibration:
            return model, "no channels to move"
        dims = {site.name: _channel_dim(_layer(model.graph, site.layers[0])) for site in sites}
        drawn = draw_rows(model, dims)
        changes = {}
        for done, site in enumerate(sites):
            rows = torch.cat([matrix(model.graph, _layer(model.graph, name)) for name in site.layers])
            seen = drawn[site.name]
            changes[site.name] = self.choose(seen.values, seen.low, seen.high, rows, site.may_shift)
            progress("reparameterize channels", done + 1, len(sites))
        rewrite = Rewrite(tuple((site, changes[site.name]) for site in sites))
        graph = model.copy_graph()
        rewrite(graph)
        return replace(model, module=graph), f"{len(sites)} activations"

    def choose(self, value: Tensor, low: Tensor, high: Tensor, rows: Tensor, may_shift: bool) -> Change:
        """value: [R, C] drawn; low, high: [C] over all of it and more; rows: [O, C], weights of all that read it."""
        first, last = self.scheme.activation_range
        levels = last - first
        if self.learn:
            low, high = learn_clips(value, low, high, rows.T @ rows, levels)
        seen, unseen = (value[::2], value[1::2]) if len(value) > 1 else (value, value)
        ends = torch.maximum(seen.amin(0), low), torch.minimum(seen.amax(0), high)
        choices = [(power, room) for power in self.powers for room in HEADROOMS]
        tried = [_change(*ends, may_shift, power, room) for power, room in choices]
        errors = [self._error(unseen, rows, change, levels) for change in tried]
        return _change(low, high, may_shift, *choices[errors.index(min(errors))])

    def _error(self, value: Tensor, rows: Tensor, change: Change, levels: int) -> float:
        """The squared error of the layers' outputs with weights and activations rounded."""
        scaled = rows * change.factor
        moved = (value - change.centre) / change.factor
        rounded = round_between(moved, torch.tensor(change.low), torch.tensor(change.high), levels)
        rounded_rows = on_grid(scaled, weight_grid(scaled, 0, self.scheme))
        return float((rounded @ rounded_rows.T - moved @ scaled.T).square().sum())


def _change(low: Tensor, high: Tensor, may_shift: bool, power: float, room: float) -> Change:
    if may_shift:
        centre, half = (low + high) / 2, ((high - low) / 2).clamp_min(1e-6)
    else:
        centre, half = torch.zeros_like(low), torch.maximum(high, -low).clamp_min(1e-6)
    factor = (half / half.log().mean().exp()) ** power
    reach = float((half / factor).max()) * room
    return Change(centre, factor, -reach if may_shift or bool((low < 0).any()) else 0.0, reach)


@dataclass(frozen=True)
class Rewrite:
    """What was done to a graph, for another copy of the same network."""

    changes: tuple[tuple[Site, Change], ...]

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return {site.name: (change.low, change.high) for site, change in self.changes}

    def __call__(self, graph: GraphModule) -> None:
        for site, change in self.changes:
            reparameterize(graph, site, change)
        graph.meta[REWRITE] = self
        graph.recompile()


def find_sites(model: Model, keep: frozenset[str] = frozenset()) -> list[Site]:
    """Activations of layers with a bias and a weight of their own, whose channels can be followed to where they are
    made, and that nothing else reads."""
    graph, trace = model.graph, trace_channels(model)
    uses: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            uses[str(node.target)] = uses.get(str(node.target), 0) + len(node.users)
    groups: dict[Node, list[WeightedLayer]] = {}
    for layer in weighted_layers(graph):
        groups.setdefault(layer.source, []).append(layer)
    found = (_site(trace, source, layers, keep, lambda name: uses.get(name) == 1) for source, layers in groups.items())
    return [site for site in found if site is not None]


def _site(
    trace: ChannelTrace, source: Node, layers: list[WeightedLayer], keep: frozenset[str], alone: Callable[[str], bool]
) -> Site | None:
    dims = {_channel_dim(layer) for layer in layers}
    if len(dims) != 1 or any(layer.node.name in keep or not _takes(layer, alone) for layer in layers):
        return None
    followed = trace.channels(source, dims.pop())
    if followed is None:
        return None
    traced, rows = followed
    names = scaled_by(traced.origin)
    is_read = trace.read_by(traced.origin, rows) == {layer.node for layer in layers}
    if names is None or not all(map(alone, names)) or not is_read or traced.scale != 1.0:
        return None
    may_shift = traced.shifts and not any(layer.is_convolution for layer in layers)
    return Site(source.name, tuple(layer.node.name for layer in layers), *names, rows, may_shift)


def _takes(layer: WeightedLayer, alone: Callable[[str], bool]) -> bool:
    """Whether the columns of `layer` and its bias can be changed."""
    own = layer.bias_node is not None and alone(layer.weight) and alone(str(layer.bias_node.target))
    return own and layer.axis is not None and layer.groups == 1 and (layer.axis == 0 or not layer.is_convolution)


def scaled_by(origin: Node) -> tuple[str, str] | None:
    """The names of what scales and what shifts the channels that `origin` makes."""
    if origin.target is aten.layer_norm.default:
        gain, offset = argument(origin, 2, "weight", None), argument(origin, 3, "bias", None)
    else:
        layer = weighted_layer(origin)
        if layer is None or layer.axis != 0:
            return None
        gain, offset = layer.weight_node, layer.bias_node
    if not all(isinstance(one, Node) and one.op == "get_attr" for one in (gain, offset)):
        return None
    return str(gain.target), str(offset.target)


def reparameterize(graph: GraphModule, site: Site, change: Change) -> None:
    """Divides the channels where they are made and multiplies the columns of the layers that read them; in place."""
    for name in site.layers:
        layer = _layer(graph, name)
        weight, bias = layer_weight(graph, layer).detach(), str(layer.bias_node.target)  # type: ignore[union-attr]
        replace_tensor(graph, bias, tensor_named(graph, bias).detach() + matrix_sum(graph, layer) @ change.centre)
        shape = [1] * weight.dim()
        shape[1 if layer.axis == 0 else 0] = -1
        replace_tensor(graph, layer.weight, weight * change.factor.view(shape))
    gain, offset = (tensor_named(graph, name).detach().clone() for name in (site.gain, site.offset))
    factor = change.factor.view(-1, *[1] * (gain.dim() - 1))
    gain[site.rows] = gain[site.rows] / factor
    offset[site.rows] = (offset[site.rows] - change.centre) / change.factor
    replace_tensor(graph, site.gain, gain)
    replace_tensor(graph, site.offset, offset)


def matrix(graph: GraphModule, layer: WeightedLayer) -> Tensor:
    """[outputs, inputs]; a convolution gives one row for each place of its kernel."""
    weight = layer_weight(graph, layer).detach()
    if layer.is_convolution:
        return weight.flatten(2).transpose(1, 2).reshape(-1, weight.shape[1])
    return weight if layer.axis == 0 else weight.T


def matrix_sum(graph: GraphModule, layer: WeightedLayer) -> Tensor:
    """[outputs, inputs], summed over the places of a kernel."""
    rows = matrix(graph, layer)
    return rows.reshape(layer_weight(graph, layer).shape[0 if layer.axis == 0 else 1], -1, rows.shape[1]).sum(1)


def _layer(graph: GraphModule, name: str) -> WeightedLayer:
    layer = weighted_layer(next(node for node in graph.graph.nodes if node.name == name))
    assert layer is not None
    return layer


def _channel_dim(layer: WeightedLayer) -> int:
    return 1 if layer.is_convolution else -1

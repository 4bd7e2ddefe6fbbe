"""What crosses a cut on the calibration data, as one tensor; and head and tail as Models with coders in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgekit.errors import DataError, PlanError
from edgekit.model import Model, Sample, flatten_outputs
from edgekit.passes.bottleneck.axes import Axes, separable_axes
from edgekit.passes.bottleneck.coding import channel_axis
from edgekit.passes.capture import export_program, flatten

WIRE = "components"
MAX_POSITIONS = 320  # of one mode: beyond it the positions keep their own coordinates
aten = torch.ops.aten


@dataclass(frozen=True)
class Crossing:
    """The layout of a tail's inputs: `rank` of each, their `channels`, the axis of these, and the `positions`: modes
    of fixed size that a transform may run along.
    """

    rank: int
    channels: tuple[int, ...]
    axis: int
    positions: tuple[int, ...]

    @classmethod
    def of(cls, tail: Model) -> Crossing:
        """Raises PlanError for inputs that no bottleneck can join."""
        shapes = {name: tuple(value.shape) for name, value in tail.example_inputs.items()}
        told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        allowed = "allowed float32 tensors [B, C, H, W], [B, N, C] or [B, C]"
        if any(value.dtype != torch.float32 or not 2 <= value.dim() <= 4 for value in tail.example_inputs.values()):
            raise PlanError(f"across the cut go {told}; {allowed}", hint="cut elsewhere, or without a bottleneck")
        first = next(iter(shapes.values()))
        axis = channel_axis(len(first))
        others = {shape[:axis] + shape[axis + 1 :] for shape in shapes.values()}
        if len(others) != 1:
            raise PlanError(
                f"across the cut go {told}; {allowed} that differ in their channels alone",
                hint="cut where one tensor crosses, or without a bottleneck",
            )
        loose = {dim for dims in tail.dynamic.values() for dim in dims}
        modes = [dim for dim in range(1, len(first)) if dim != axis]
        positions = [dim for dim in modes if dim not in loose and 1 < first[dim] <= MAX_POSITIONS]
        return cls(len(first), tuple(shape[axis] for shape in shapes.values()), axis, tuple(positions))

    @property
    def modes(self) -> tuple[int, ...]:
        """Channels first: fewer of them make the rest cheaper."""
        return (self.axis, *self.positions)

    @property
    def per_position(self) -> bool:
        """Whether all positions are fixed in number, so that each may have statistics of its own."""
        return len(self.positions) > 0 and len(self.positions) == self.rank - 2

    def join(self, values: Sequence[Tensor]) -> Tensor:
        return values[0] if len(values) == 1 else torch.cat(list(values), self.axis)

    def part(self, joined: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.split(joined, list(self.channels), self.axis))

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """[N, ...] of all samples. Raises DataError for fewer than two, or of different shapes."""
        joined = [self.join(tuple(sample.values())) for sample in samples]
        if sum(len(value) for value in joined) < 2:
            raise DataError(
                f"{len(joined)} calibration samples, allowed 2 and more (some hundred are better)",
                hint="give calibration data: a bottleneck is fitted to what crosses the cut",
            )
        if len({value.shape[1:] for value in joined}) != 1:
            raise DataError("calibration samples of different shapes", hint="pad or cut them to one shape")
        return torch.cat(joined)

    def mean(self, features: Tensor) -> Tensor:
        """[...] without the batch; of size one where a dimension is dynamic, so that it fits any size."""
        mean = features.mean(0)
        free = [dim - 1 for dim in range(1, self.rank) if dim not in self.modes]
        return mean.mean(free, keepdim=True) if free else mean

    def axes(self, features: Tensor, gradients: Tensor | None, regularization: float) -> dict[int, Axes]:
        """By mode, around the mean."""
        centred = features - self.mean(features)
        return dict(zip(self.modes, separable_axes(centred, gradients, self.modes, regularization), strict=True))


def has_open_batch(model: Model) -> bool:
    """Whether every input takes batches of any size."""
    return all(0 in model.dynamic.get(name, {}) for name in model.example_inputs)


def row_by_row(model: Model) -> Callable[..., list[Tensor]]:
    """The captured graph on tensors [N, ...]: at once where the batch is open, else a row at a time, put together."""

    def run(*values: Tensor) -> list[Tensor]:
        if has_open_batch(model):
            return flatten_outputs(model.graph(*values))
        rows = [
            flatten_outputs(model.graph(*row)) for row in zip(*(torch.split(value, 1) for value in values), strict=True)
        ]
        return [torch.cat(column) for column in zip(*rows, strict=True)]

    return run


class _Both(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(flatten_outputs(self.second(*flatten_outputs(self.first(*values)))))


def chain(count: int, first: nn.Module, second: nn.Module) -> GraphModule:
    """`second` of the outputs of `first`, with `count` inputs of its own: torch.export asks for named ones."""
    graph = torch.fx.Graph()
    inputs = tuple(graph.placeholder(f"value_{index}") for index in range(count))
    graph.output(graph.call_module("both", inputs))
    return GraphModule({"both": _Both(first, second)}, graph)


def with_coders(
    head: Model, tail: Model, encoder: nn.Module, decoder: nn.Module, graph: GraphModule | None = None
) -> tuple[Model, Model]:
    """Captured head that ends in `components`, captured tail that begins there; `graph` in place of the tail's own.

    The tail's samples are the new head's answers.
    """
    below = _captured(
        head.evolve_quietly(output_names=(WIRE,), postprocess=None),
        chain(len(head.example_inputs), head.graph, encoder),
    )
    merged = below.copy_graph()
    merge_convolutions(merged)
    below = below.evolve_quietly(module=merged)
    first = next(iter(tail.dynamic.values()), {})
    axis = Crossing.of(tail).axis
    above = _captured(
        tail.evolve_quietly(
            example_inputs=_encoded(encoder, tail.example_inputs),
            dynamic={WIRE: {dim: name for dim, name in first.items() if dim != axis}} if first else {},
            calibration=tuple(_encoded(encoder, sample) for sample in tail.calibration),
            held_out=tuple(_encoded(encoder, sample) for sample in tail.held_out),
        ),
        chain(1, decoder, graph if graph is not None else tail.graph),
    )
    return below, above


def _captured(model: Model, graph: GraphModule) -> Model:
    return model.evolve_quietly(module=flatten(export_program(model, graph.eval())))


def _encoded(encoder: nn.Module, sample: Sample) -> Sample:
    with torch.no_grad():
        return {WIRE: encoder(*sample.values())}


def merge_convolutions(graph: GraphModule) -> int:
    """A convolution that nothing but a 1 x 1 convolution reads becomes one with it; returns how many did. In place."""
    merged = 0
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.target is aten.conv2d.default and node.args else None
        if not isinstance(before, Node) or before.target is not aten.conv2d.default or len(before.users) != 1:
            continue
        outer, inner = _plain(graph, node), _plain(graph, before)
        if outer is None or inner is None or outer[0].shape[2:] != (1, 1) or _settings(node) != _settings(None):
            continue
        weight = torch.einsum("ko,oihw->kihw", outer[0][:, :, 0, 0].double(), inner[0].double())
        shift = outer[1].double() + outer[0][:, :, 0, 0].double() @ inner[1].double()
        with graph.graph.inserting_before(node):
            names = [f"_merged_{merged}_{part}" for part in ("weight", "bias")]
            for name, value in zip(names, (weight, shift), strict=True):
                setattr(graph, name, nn.Parameter(value.float()))
            places = [graph.graph.get_attr(name) for name in names]
            for place, value in zip(places, (weight, shift), strict=True):
                place.meta["val"] = value.float()
            node.args = (before.args[0], *places, *before.args[3:])
        merged += 1
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return merged


def _settings(node: Node | None) -> tuple[tuple[int, ...], ...]:
    """Stride, padding, dilation and groups of a conv2d; of the plainest for None."""
    plain: list[list[int]] = [[1, 1], [0, 0], [1, 1], [1]]
    given = [value if isinstance(value, list | tuple) else [value] for value in (node.args[3:] if node else ())]
    return tuple(tuple(value) for value in [*given, *plain[len(given) :]])


def _plain(graph: GraphModule, node: Node) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of a convolution without groups whose weights are the graph's own; None for any other."""
    weight = node.args[1]
    bias = node.args[2] if len(node.args) > 2 else None
    if _settings(node)[3] != (1,) or not isinstance(weight, Node) or weight.op != "get_attr" or node.kwargs:
        return None
    value = _attribute(graph, weight)
    if bias is None:
        return value, value.new_zeros(len(value))
    return (value, _attribute(graph, bias)) if isinstance(bias, Node) and bias.op == "get_attr" else None


def _attribute(graph: GraphModule, node: Node) -> Tensor:
    value: object = graph
    for name in str(node.target).split("."):
        value = getattr(value, name)
    assert isinstance(value, Tensor)
    return value.detach()

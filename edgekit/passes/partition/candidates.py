"""Where a model can be cut: the values alive across each place of the graph, with what lies below it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.costs.from_torch import MOVEMENT, PADS, VIEWS, operator_name, torch_program
from edgekit.costs.operators import Program
from edgekit.errors import PlanError, SourceError, UnknownNameError
from edgekit.model import Model
from edgekit.passes.partition.flow import Flow
from edgekit.passes.partition.naming import Places, unique
from edgekit.passes.partition.stages import Cut

# A value and what one of these makes of it cost the same to send; the cut behind leaves the tail less to do.
ACTIVATIONS = {
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "gelu", "silu", "sigmoid", "tanh", "hardswish",
    "hardsigmoid", "elu", "leaky_relu", "mish", "softplus", "dropout", "neg", "mul", "add", "sub", "div",
}  # fmt: skip
ORDERS = {"transpose", "permute", "t", "movedim", "swapaxes"}


def cuts(model: Model) -> tuple[Cut, ...]:
    """The places in graph order; one for each set of values that cross, views and activations of them counted as the
    same. A place before all work or behind all of it is none.

    Raises SourceError for a Model that is not captured, or a trained .onnx file.
    """
    layout = Layout.of(model)
    if layout.named is None:
        layout.named = _candidates(layout)
    return layout.named


def cut_at(model: Model, head_nodes: Iterable[str]) -> Cut:
    """The cut above any downward-closed set of graph nodes (weights and sizes may be left out).

    Raises SourceError for a name that the graph lacks, and PlanError where a node's input is not in the set or
    nothing is left on one side.
    """
    layout = Layout.of(model)
    by_name = {node.name: node for node in model.graph.graph.nodes}
    wanted = list(head_nodes)
    unknown = next((name for name in wanted if name not in by_name), None)
    if unknown is not None:
        error = UnknownNameError("graph node", unknown, by_name)
        raise SourceError(error.message, hint="names are those of model.graph.graph.nodes")
    chosen = {by_name[name] for name in wanted}
    head = layout.flow.closure({node for node in chosen if node not in layout.flow.free and node.op != "output"})
    for node in layout.flow.nodes:
        if node in head and node not in chosen and node.op != "placeholder" and layout.works(node):
            user = next(user for user in layout.flow.nodes if user in chosen and node in layout.flow.closure([user]))
            raise PlanError(
                f"not a cut: {user.name} lies below it, {node.name} above, and {user.name} needs {node.name}",
                hint="give every node that a head node reads, directly or not",
            )
    cut = layout.cut(head)
    if cut is None:
        raise PlanError(
            f"a cut with {'all' if head else 'none'} of the model's work below it",
            hint="leave at least one operator on each side",
        )
    return layout.with_name(model, cut)


def find_cut(model: Model, name: str) -> Cut:
    """The candidate called `name`. Raises UnknownNameError with the nearest one."""
    for cut in cuts(model):
        if cut.name == name:
            return cut
    raise UnknownNameError("cut", name, [cut.name for cut in cuts(model)])


@dataclass
class Layout:
    """A captured graph's flow, costs and places; kept for as long as the graph lives."""

    graph: GraphModule
    flow: Flow
    program: Program
    places: Places
    flops: dict[str, float]
    kinds: dict[str, str]
    named: tuple[Cut, ...] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: Model) -> Layout:
        if model.onnx_path is not None:
            raise SourceError(
                f"{model.name} is a trained .onnx file, which has no torch graph to cut",
                hint="give the module that the file was exported from",
            )
        graph = model.graph
        if graph not in _KNOWN:
            program = torch_program(model)
            flow = Flow.of(graph)
            _KNOWN[graph] = cls(
                graph,
                flow,
                program,
                Places(flow.nodes),
                {one.output: one.flops for one in program.operators},
                {one.output: one.kind for one in program.operators},
            )
        return _KNOWN[graph]

    def works(self, node: Node) -> bool:
        """Whether a kernel runs for it."""
        return node.op != "placeholder" and self.kinds.get(node.name, "view") != "view"

    def head_of(self, crossing: Sequence[str]) -> frozenset[Node]:
        """Everything that the crossing values need. Raises SourceError for a name that the graph lacks."""
        by_name = {node.name: node for node in self.flow.nodes}
        unknown = next((name for name in crossing if name not in by_name), None)
        if unknown is not None:
            raise SourceError(
                f"the graph has no value {unknown!r}", hint="take the cut from cuts(model) of this very Model"
            )
        return self.flow.closure(by_name[name] for name in crossing)

    def cut(self, head: frozenset[Node]) -> Cut | None:
        """Above the closed set `head`; None where one side has no work. Raises PlanError, see `Flow.crossing`."""
        if not any(map(self.works, head)):
            return None
        crossing = self.flow.crossing(head | frozenset(self.flow.placeholders))
        head = self.flow.closure(crossing)
        if not any(map(self.works, head)) or not any(self.works(node) for node in self.flow.nodes if node not in head):
            return None
        return Cut(
            name=self.places.name(crossing[-1:]),
            crossing=tuple(node.name for node in crossing),
            size_bytes=sum(self.program.values[node.name].size_bytes for node in crossing),
            head_flops=sum(self.flops.get(node.name, 0.0) for node in head),
            head_parameters=self.parameters(head),
        )

    def with_name(self, model: Model, cut: Cut) -> Cut:
        """`cut` under the name of the candidate that it is, or one of its own."""
        known = {other.crossing: other.name for other in cuts(model)}
        return replace(cut, name=known.get(cut.crossing) or unique(cut.name, known.values(), "@"))

    def parameters(self, nodes: Iterable[Node]) -> int:
        """Elements of the weights that `nodes` use, each counted once."""
        weights: dict[int, int] = {}
        pending = list(nodes)
        seen: set[Node] = set()
        while pending:
            node = pending.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.op == "get_attr":
                tensor: Any = functools.reduce(getattr, str(node.target).split("."), self.graph)
                if isinstance(tensor, Tensor):
                    weights[id(tensor)] = tensor.numel()
            pending += [before for before in node.all_input_nodes if before in self.flow.free]
        return sum(weights.values())

    def origin(self, node: Node) -> Node:
        """The value that views, activations and reorderings made `node` from."""
        while True:
            name = operator_name(node).removesuffix("_")
            inputs = [before for before in node.all_input_nodes if before not in self.flow.free]
            same = name in VIEWS or name in ORDERS or name in ACTIVATIONS
            values = self.program.values
            resized = same and len(inputs) == 1 and values[node.name].elements != values[inputs[0].name].elements
            if len(inputs) != 1 or resized or not (same or name in PADS):
                return node
            node = inputs[0]

    def behind(self, node: Node) -> list[Node]:
        """`node` and the values that views and activations made it from, the last first."""
        found = [node]
        while found[-1] is not self.origin(found[-1]):
            found += [before for before in found[-1].all_input_nodes if before not in self.flow.free]
        return found

    def moves(self, node: Node) -> bool:
        return operator_name(node) in VIEWS | MOVEMENT


_KNOWN: weakref.WeakKeyDictionary[GraphModule, Layout] = weakref.WeakKeyDictionary()


def _candidates(layout: Layout) -> tuple[Cut, ...]:
    by_name = {node.name: node for node in layout.flow.nodes}
    position = {node: index for index, node in enumerate(layout.flow.nodes)}
    groups: dict[frozenset[Node], list[tuple[Cut, Node]]] = {}
    head: frozenset[Node] = frozenset(layout.flow.placeholders)
    for node in layout.flow.nodes:
        if node in head:
            continue
        before, head = head, layout.flow.closure([node], head)
        last = max(head - before, key=lambda one: position[one])
        try:
            cut = layout.cut(head)
        except PlanError:
            continue
        if cut is not None:
            groups.setdefault(frozenset(layout.origin(by_name[name]) for name in cut.crossing), []).append((cut, last))
    chosen: list[Cut] = []
    for group in groups.values():
        best = min((cut for cut, _ in group), key=lambda cut: _price(cut, layout, by_name))
        name = unique(layout.places.name(last for _, last in group), [cut.name for cut in chosen], "@")
        chosen.append(replace(best, name=name))
    return tuple(chosen)


def _price(cut: Cut, layout: Layout, by_name: dict[str, Node]) -> tuple[float, ...]:
    """Of equal places: the fewest bytes, images before rows of numbers, activations below."""
    return cut.size_bytes, sum(layout.moves(by_name[name]) for name in cut.crossing), -cut.head_flops

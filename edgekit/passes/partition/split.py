"""One captured Model becomes stages that compose to it exactly, each a Model that every pass and exporter takes."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from edgekit.errors import PlanError, SourceError
from edgekit.model import Model, Sample
from edgekit.passes.partition.candidates import Layout
from edgekit.passes.partition.flow import SIZE, dimensions, expression
from edgekit.passes.partition.naming import identifier, unique
from edgekit.passes.partition.stages import Cut

BATCH = 16


def split(model: Model, cuts: Sequence[Cut]) -> tuple[Model, ...]:
    """The stages below, between and above `cuts`, in order; what one gives is what the next takes, by name.

    A value that a later stage reads passes through those between, under a new name in each: files want the names of
    what goes in and out apart. Samples of a later stage are the answers of the one before. Weights are copies, each
    stage's own, so that a stage can be trained alone. Raises PlanError for cuts that are not in order, and
    SourceError for a cut of another Model or a Model that is quantized already.
    """
    start = time.perf_counter()
    if model.quantization is not None:
        raise SourceError(f"{model.name} is quantized already", hint="split first, then quantize each stage")
    layout = Layout.of(model)
    heads = [layout.head_of(cut.crossing) for cut in cuts]
    _check_order(layout, cuts, heads)
    borders = _borders(model, layout, cuts, heads)
    insides = [
        head - before
        for before, head in zip([frozenset(), *heads], [*heads, frozenset(layout.flow.nodes)], strict=True)
    ]
    stages: list[Model] = []
    for index, inside in enumerate(insides):
        below, above = borders[index], borders[index + 1]
        label = _label(index, len(insides))
        stage = replace(model, postprocess=None) if index == 0 else _following(model, stages[-1])
        stage = replace(
            stage,
            name=f"{model.name}-{label}",
            module=StageBuilder(layout).build(below, inside, tuple(above)),
            output_names=tuple(above.values()),
            postprocess=model.postprocess if index == len(cuts) else None,
        )
        where = " and ".join(cut.name for cut in cuts[max(0, index - 1) : index + 1]) or "no cut"
        stages.append(stage.evolve("Split", f"{label} at {where}", time.perf_counter() - start))
    return tuple(stages)


def _check_order(layout: Layout, cuts: Sequence[Cut], heads: Sequence[frozenset[Node]]) -> None:
    previous: frozenset[Node] = frozenset()
    for index, (cut, head) in enumerate(zip(cuts, heads, strict=True)):
        if not previous <= head or not any(layout.works(node) for node in head - previous):
            other = cuts[index - 1].name
            raise PlanError(
                f"the cut {cut.name!r} does not lie above {other!r} with work between them",
                hint="give cuts from the input to the output, as cuts(model) lists them",
            )
        missing = [node.name for node in layout.flow.crossing(head) if node.name not in cut.crossing]
        if missing:
            raise PlanError(
                f"the cut {cut.name!r} leaves out {', '.join(missing)}, which the stage above reads",
                hint="take the cut from cuts(model) or cut_at(model, nodes) of this very Model",
            )
        previous = head


def _borders(
    model: Model, layout: Layout, cuts: Sequence[Cut], heads: Sequence[frozenset[Node]]
) -> list[dict[Node, str]]:
    """What goes over each border, the Model's inputs first and its outputs last, with the name that it has there."""
    outputs = model.graph.graph.output_node().all_input_nodes
    wanted: list[set[Node]] = [set(outputs)]
    for cut, head in zip(reversed(cuts), reversed(heads), strict=True):
        crossing = {node for node in layout.flow.nodes if node.name in cut.crossing}
        wanted.append(crossing | (wanted[-1] & head))
    borders = [dict(zip(layout.flow.placeholders, model.example_inputs, strict=True))]
    taken = {*model.example_inputs, *model.output_names}
    for crossing in reversed(wanted[1:]):
        border: dict[Node, str] = {}
        for node in layout.flow.nodes:
            if node in crossing:
                place = borders[0].get(node) or identifier(layout.places.name(layout.behind(node)))
                border[node] = unique(place, taken, "_")
                taken.add(border[node])
        borders.append(border)
    return [*borders, dict(zip(outputs, model.output_names, strict=True))]


def _label(index: int, count: int) -> str:
    if index == 0:
        return "head"
    if index == count - 1:
        return "tail"
    return "middle" if count == 3 else f"middle{index}"


def _following(model: Model, below: Model) -> Model:
    """`model` with the inputs, samples and dynamic dimensions of the stage above `below`; its graph is unchanged."""
    dynamic = {spec.name: {d: s for d, s in enumerate(spec.shape) if isinstance(s, str)} for spec in below.output_specs}
    return replace(
        model,
        example_inputs=below.forward(below.example_inputs),
        dynamic={name: dims for name, dims in dynamic.items() if dims},
        calibration=answers(below, below.calibration),
        held_out=answers(below, below.held_out),
        preprocess=None,
        tokenizer=None,
        previews=(),
    )


def answers(stage: Model, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """What `stage` gives for each sample: in batches where every input and output has one in front, then single."""
    batched = bool(stage.dynamic) and all(0 in stage.dynamic.get(name, {}) for name in stage.example_inputs)
    single = all(value.shape[0] == 1 for sample in samples for value in sample.values()) if batched else False
    symbols = {spec.shape[0] for spec in stage.output_specs if spec.shape} if single and samples else set()
    if len({value.shape for sample in samples for value in sample.values()}) > len(stage.example_inputs):
        single = False
    if not single or symbols != {stage.dynamic[next(iter(stage.example_inputs))][0]}:
        return tuple(_own(stage.forward(sample)) for sample in samples)
    found: list[Sample] = []
    for start in range(0, len(samples), BATCH):
        rows = samples[start : start + BATCH]
        given = stage.forward({name: torch.cat([row[name] for row in rows]) for name in stage.example_inputs})
        found += [_own({name: value[index : index + 1] for name, value in given.items()}) for index in range(len(rows))]
    return tuple(found)


def _own(sample: Sample) -> Sample:
    """Memory of its own: a slice would keep the whole batch alive."""
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in sample.items()}


@dataclass
class StageBuilder:
    """Copies the nodes of one stage, and the free ones that they use, into a graph of their own."""

    layout: Layout

    def build(self, inputs: Mapping[Node, str], inside: frozenset[Node], outputs: Sequence[Node]) -> GraphModule:
        """`inputs`: the values that come from below, by the name that they get."""
        self.graph = Graph()
        self.made: dict[Node, Node] = {}
        self.sizes: dict[Any, tuple[Node, int]] = {}
        for node, name in inputs.items():
            placeholder = self.graph.placeholder(name)
            placeholder.meta = dict(node.meta)
            self.made[node] = placeholder
            for size, dim in dimensions(node):
                self.sizes.setdefault(size, (placeholder, dim))
        for node in self.layout.graph.graph.nodes:
            if node in inside and node not in self.made:
                for before in node.all_input_nodes:
                    self._bring(before)
                self._copy(node)
        for node in outputs:
            self._bring(node)
        self.graph.output(tuple(self._outward(self.made[node]) for node in outputs))
        root = self.layout.graph
        stage = GraphModule(root, self.graph, class_name="Stage")
        stage.graph.eliminate_dead_code()
        stage.graph.lint()
        stage = copy.deepcopy(stage)
        stage.recompile()
        return stage

    def _outward(self, made: Node) -> Node:
        """An input that is an output too gets memory, and in a file a name, of its own."""
        if made.op != "placeholder":
            return made
        clone = self.graph.call_function(torch.ops.aten.clone.default, (made,))
        clone.meta = {"val": made.meta["val"]} if "val" in made.meta else {}
        return clone

    def _bring(self, node: Node) -> None:
        """A weight, a size or what is made of them, where it is not here yet."""
        if node in self.made:
            return
        size = expression(node)
        if size is not None and size in self.sizes and not self._is_here(node):
            value, dim = self.sizes[size]
            self.made[node] = self.graph.call_function(SIZE, (value, dim))
            self.made[node].meta = {"val": node.meta["val"]}
            return
        for before in node.all_input_nodes:
            self._bring(before)
        self._copy(node)

    def _is_here(self, node: Node) -> bool:
        """A `sym_size` of a value that this stage has."""
        return node.target is SIZE and node.args[0] in self.made

    def _copy(self, node: Node) -> None:
        made = self.graph.node_copy(node, lambda before: self.made[before])
        made.target = self.layout.flow.functional.get(node, node.target)
        self.made[node] = made

"""The planning problem of a Model: what each fused segment costs on each tier, and the way back to a Cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from torch.fx import Node

from edgekit.costs import segments
from edgekit.costs.operators import fuse, operator_of
from edgekit.devices.device import Device
from edgekit.devices.latency import predict
from edgekit.errors import PlanError
from edgekit.model import Model
from edgekit.passes.partition.candidates import Layout
from edgekit.passes.partition.flow import unsendable
from edgekit.passes.partition.stages import Cut
from edgekit.planning.graph import Coding, LayeredGraph, Value, Work
from edgekit.planning.ways import power_of


@dataclass(frozen=True)
class Tier:
    """Where a stage would run, and as what. `format` None: the device's own best; `threads` None: all cores."""

    device: Device
    format: str | None = None
    precision: str = "fp32"
    threads: int | None = None


@dataclass(frozen=True)
class Compression:
    """What becomes of a value on the wire: a byte an element, divided by `features` (1: plain 8-bit) for what is
    computed and by `inputs` for the Model's own inputs (a picture's JPEG, say)."""

    features: float = 1.0
    inputs: float = 1.0
    encode_ms: float = 0.0
    decode_ms: float = 0.0


@dataclass(frozen=True)
class Problem:
    """`graph`: the first node is the inputs. `members[i]`: the graph nodes of its node i."""

    model: Model
    graph: LayeredGraph
    members: tuple[tuple[str, ...], ...]

    def cut(self, below: Iterable[int]) -> Cut:
        """The Cut above a downward-closed set of the problem's nodes. Raises PlanError where no work is on a side."""
        layout = Layout.of(self.model)
        by_name = {node.name: node for node in layout.flow.nodes}
        chosen = [by_name[name] for index in below for name in self.members[index]]
        cut = layout.cut(layout.flow.closure(chosen))
        if cut is None:
            raise PlanError("the best partition leaves the model whole", hint="run it on one tier, or another link")
        return layout.with_name(self.model, cut)

    def cuts(self, tier_of: Sequence[int]) -> tuple[Cut, ...]:
        """The borders between the tiers that have work, from the device up."""
        found: list[Cut] = []
        for tier in range(max(tier_of)):
            try:
                cut = self.cut(index for index, place in enumerate(tier_of) if place <= tier)
            except PlanError:
                continue
            if not found or found[-1].crossing != cut.crossing:
                found.append(cut)
        return tuple(found)


def planning_problem(
    model: Model, tiers: Sequence[Tier], compressions: Sequence[Compression] = (Compression(),)
) -> Problem:
    """Latencies are predicted, fused as runtimes fuse; a value may cross in any of `compressions`.

    Raises SourceError for a Model that is not captured, DeviceError for a format that a device cannot run.
    """
    layout = Layout.of(model)
    groups = _ordered(layout, _groups(layout))
    latencies = [_latencies(model, tier) for tier in tiers]
    power = power_of(tiers[0].device)
    works = []
    for lead, group in groups:
        times = tuple(sum(by_name.get(node.name, 0.0) for node in group) for by_name in latencies)
        weights = 4.0 * layout.parameters(group)
        works.append(Work(lead, times, times[0] * power.compute_w if power else 0.0, weights))
    place = {node: index for index, (_, group) in enumerate(groups) for node in group}
    values = _values(layout, place, compressions)
    answers = tuple((place[node], float(layout.program.values[node.name].size_bytes)) for node in layout.flow.outputs)
    members = tuple(tuple(node.name for node in group) for _, group in groups)
    return Problem(model, LayeredGraph(tuple(works), values, answers), members)


def _latencies(model: Model, tier: Tier) -> dict[str, float]:
    """By leading operator, in ms."""
    format = tier.format or next(iter(tier.device.formats))
    times: dict[str, float] = {}
    for time in predict(segments(model, tier.precision), tier.device, format, tier.threads).by_segment:
        lead = operator_of(time.name)
        times[lead] = times.get(lead, 0.0) + time.latency_ms
    return times


def _groups(layout: Layout) -> list[tuple[str, list[Node]]]:
    """(leading operator, nodes) of each kernel, the inputs first. Views are in none: they belong to who reads them."""
    by_name = {node.name: node for node in layout.flow.nodes}
    groups = [("inputs", list(layout.flow.placeholders))]
    groups += [
        (kernel.lead.name, [by_name[name] for name in kernel.members if name in by_name])
        for kernel in fuse(layout.program)
    ]
    return [group for group in groups if group[1]]


def _sources(layout: Layout, place: dict[Node, int], node: Node, *, read: bool) -> set[Node]:
    """What `node` takes from other kernels, views seen through: the values that it reads, or (`read` False) also what
    only ties it to them, such as sizes, memory and tuples."""
    found: set[Node] = set()
    pending = [node]
    seen: set[Node] = set()
    while pending:
        here = pending.pop()
        if here in place and here is not node:
            found.add(here)
            continue
        before = here.all_input_nodes if read else layout.flow.needs[here]
        pending += [one for one in before if one not in seen and one not in layout.flow.free]
        seen.update(before)
    return found


def _ordered(layout: Layout, groups: list[tuple[str, list[Node]]]) -> list[tuple[str, list[Node]]]:
    """In an order in which each kernel comes after what it reads. Kernels that need each other become one, and those
    on both ends of a value that cannot cross."""
    while True:
        place = {node: index for index, (_, group) in enumerate(groups) for node in group}
        needs = {
            index: {place[before] for node in group for before in _sources(layout, place, node, read=False)} - {index}
            for index, (_, group) in enumerate(groups)
        }
        for node, above in _read_above(layout, place).items():
            if unsendable(node):
                needs[place[node]] |= above
        try:
            order = list(TopologicalSorter({index: sorted(needs[index]) for index in needs}).static_order())
        except CycleError as error:
            ring = sorted(set(error.args[1]))
            merged = (groups[ring[0]][0], [node for index in ring for node in groups[index][1]])
            groups = [
                merged if index == ring[0] else group for index, group in enumerate(groups) if index not in ring[1:]
            ]
            continue
        order.sort(key=lambda index: index != 0)
        return [groups[index] for index in order]


def _read_above(layout: Layout, place: dict[Node, int]) -> dict[Node, set[int]]:
    """The kernels that read each value which another one made."""
    above: dict[Node, set[int]] = {}
    for node, index in place.items():
        for before in _sources(layout, place, node, read=True):
            if place[before] != index:
                above.setdefault(before, set()).add(index)
    return above


def _values(layout: Layout, place: dict[Node, int], compressions: Sequence[Compression]) -> tuple[Value, ...]:
    return tuple(
        Value(place[node], tuple(sorted(above)), tuple(_coding(layout, node, one) for one in compressions))
        for node, above in sorted(_read_above(layout, place).items(), key=lambda item: place[item[0]])
    )


def _coding(layout: Layout, node: Node, compression: Compression) -> Coding:
    value = layout.program.values[node.name]
    if not value.floating:
        return Coding(float(value.size_bytes))
    ratio = compression.inputs if node.op == "placeholder" else compression.features
    return Coding(value.elements / ratio, compression.encode_ms, compression.decode_ms)

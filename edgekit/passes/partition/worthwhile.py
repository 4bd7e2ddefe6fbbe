"""Which few cuts are worth an export: those that win somewhere between a slow link and a fast one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekit.devices.device import Device
from edgekit.errors import PlanError
from edgekit.model import Model
from edgekit.passes.partition.candidates import Layout, cuts
from edgekit.passes.partition.problem import Compression, Problem, Tier, planning_problem
from edgekit.passes.partition.stages import Cut
from edgekit.planning.frontier import useful_cuts
from edgekit.planning.link import Link

LINKS = tuple(Link(mbps, rtt) for mbps in (0.5, 1, 2, 5, 10, 20, 50, 100, 200) for rtt in (2, 20, 80))
# Of a plain 8-bit feature: what bottlenecks leave at about a point of accuracy.
BOTTLENECKED = 10.0
# Of a byte a pixel and channel: a photograph's JPEG.
PICTURED = 8.0
# Of the weights: a head of the first share that has a cut with half the bytes of the very first one, or less.
EARLY_SHARES = (1 / 20, 1 / 10, 1 / 5, 1 / 3)
# A cut that is nowhere faster than this, beside those chosen before, is not worth minutes of export.
WORTH = 0.05


def worthwhile_cuts(
    model: Model,
    device: Device,
    edge: Device,
    links: Sequence[Link] = LINKS,
    limit: int = 3,
    *,
    ratio: float = BOTTLENECKED,
    input_ratio: float = PICTURED,
) -> tuple[Cut, ...]:
    """At most `limit` cuts, in graph order: the earliest useful one, then those that bring the most over the grid of
    links beside running the model whole on either side.

    A feature is taken to cross plain, a byte an element, or bottlenecked to 1 / `ratio` of that. Raises PlanError for
    a model that has no cut.
    """
    named = cuts(model)
    if not named:
        raise PlanError(f"{model.name} has no place to cut", hint="--split none")
    chosen = [earliest_useful(model)]
    tables = []
    for features in (1.0, ratio):
        problem = planning_problem(model, (Tier(device), Tier(edge)), (Compression(features, input_ratio),))
        tables.append(_Table(problem, links))
    pool = {cut.crossing: cut for table in tables for cut in table.winners()} | {cut.crossing: cut for cut in named}
    costs = {cut: [ms for table in tables for ms in table.split_ms(cut)] for cut in pool.values()}
    best = [ms for table in tables for ms in table.whole_ms()]
    best = [min(pair) for pair in zip(best, costs[chosen[0]], strict=True)]
    while len(chosen) < limit:
        gains = {cut: _gain(best, ms) for cut, ms in costs.items() if _most(best, ms) >= WORTH}
        if not gains:
            break
        cut = max(gains, key=lambda one: gains[one])
        chosen.append(cut)
        best = [min(pair) for pair in zip(best, costs[cut], strict=True)]
    return tuple(sorted(chosen, key=lambda cut: cut.head_flops))


def earliest_useful(model: Model) -> Cut:
    """The cut with the fewest bytes of those with a twentieth of the model's weights below them; the one with most
    work below it of equals. Where that saves little, a larger head is looked for."""
    layout = Layout.of(model)
    values = layout.program.values
    named = [cut for cut in cuts(model) if any(values[name].floating for name in cut.crossing)] or list(cuts(model))
    whole = layout.parameters(layout.flow.nodes)
    first = named[0]
    best = first
    for share in EARLY_SHARES:
        early = [cut for cut in named if cut.head_parameters <= share * whole] or [first]
        best = min(early, key=lambda cut: (cut.size_bytes, -cut.head_flops))
        if 2 * best.size_bytes <= first.size_bytes:
            break
    return best


def _gain(best: Sequence[float], ms: Sequence[float]) -> float:
    """How much lower the mean of log latency gets: a percent counts the same on every link."""
    return sum(math.log(was / min(was, now)) for was, now in zip(best, ms, strict=True)) / len(best)


def _most(best: Sequence[float], ms: Sequence[float]) -> float:
    """The share of the latency that is saved on the link where it is most."""
    return max(1 - now / was for was, now in zip(best, ms, strict=True))


class _Table:
    """Latencies of one problem over all links."""

    def __init__(self, problem: Problem, links: Sequence[Link]) -> None:
        self.problem, self.links = problem, links
        graph = problem.graph
        self._node = {name: index for index, group in enumerate(problem.members) for name in group}
        self._times = [work.latency_ms for work in graph.works]
        self._answer = sum(size for _, size in graph.answers)

    def winners(self) -> list[Cut]:
        found = useful_cuts(self.problem.graph, [(link,) for link in self.links])
        return [cut for one in found for cut in self.problem.cuts(one.partition.tier_of)]

    def whole_ms(self) -> list[float]:
        """The better of running all below and all above, on each link."""
        below = sum(times[0] for times in self._times)
        above = sum(times[1] for times in self._times)
        sent = sum(
            min(c.size_bytes for c in value.codings) for value in self.problem.graph.values if not value.producer
        )
        return [min(below, above + self._there_and_back(link, sent)) for link in self.links]

    def split_ms(self, cut: Cut) -> list[float]:
        layout = Layout.of(self.problem.model)
        head = {self._node[node.name] for node in layout.head_of(cut.crossing) if node.name in self._node}
        computed = sum(times[0 if index in head else 1] for index, times in enumerate(self._times))
        graph = self.problem.graph
        sent = sum(
            min(coding.size_bytes for coding in value.codings)
            for value in graph.values
            if value.producer in head and any(reader not in head for reader in value.consumers)
        )
        return [computed + self._there_and_back(link, sent) for link in self.links]

    def _there_and_back(self, link: Link, size_bytes: float) -> float:
        return link.one_way_ms(size_bytes) + link.one_way_ms(self._answer)

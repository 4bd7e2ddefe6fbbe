"""The plain reference: every assignment of tiers, every coding of every value, one after the other. For tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from edgekit.planning.graph import Crossed, LayeredGraph, Partition
from edgekit.planning.link import Link
from edgekit.planning.plan import Objective, PlanLimits, Power


def brute_force(
    graph: LayeredGraph,
    links: Sequence[Link],
    objective: Objective | None = None,
    limits: PlanLimits | None = None,
    power: Power | None = None,
) -> Partition | None:
    """The best partition within the limits, None where there is none. Time: tiers^nodes x codings^crossings."""
    objective, limits = objective or Objective(), limits or PlanLimits()
    best: Partition | None = None
    for tier_of in assignments(graph):
        crossings = [
            (number, link)
            for number, value in enumerate(graph.values)
            for link in range(tier_of[value.producer], max(tier_of[consumer] for consumer in value.consumers))
        ]
        choices = [range(len(graph.values[number].codings)) for number, _ in crossings]
        for codings in product(*choices):
            crossed = [Crossed(*pair, coding) for pair, coding in zip(crossings, codings, strict=True)]
            found = price(graph, links, tier_of, crossed, objective, power)
            if _is_within(found, limits) and (best is None or found.cost < best.cost):
                best = found
    return best


def assignments(graph: LayeredGraph) -> Iterator[tuple[int, ...]]:
    """Every tier for every node that never goes back down; the source on the device."""
    for tier_of in product([0], *([range(graph.tiers)] * (len(graph.works) - 1))):
        if all(tier_of[v.producer] <= tier_of[consumer] for v in graph.values for consumer in v.consumers):
            yield tier_of


def price(
    graph: LayeredGraph,
    links: Sequence[Link],
    tier_of: Sequence[int],
    crossed: Sequence[Crossed],
    objective: Objective,
    power: Power | None,
) -> Partition:
    """What a partition costs, told as it happens."""
    watts = power or Power(0.0, 0.0, 0.0)
    latency_ms = energy_mj = bytes_sent = drop = memory_bytes = 0.0
    for work, tier in zip(graph.works, tier_of, strict=True):
        latency_ms += work.latency_ms[tier]
        if tier == 0:
            energy_mj += work.energy_mj
            memory_bytes += work.memory_bytes
        else:
            energy_mj += work.latency_ms[tier] * watts.idle_w
    for crossing in crossed:
        coding = graph.values[crossing.value].codings[crossing.coding]
        sent_ms = links[crossing.link].transfer_ms(coding.size_bytes)
        latency_ms += coding.encode_ms + sent_ms + coding.decode_ms
        drop += coding.drop
        if crossing.link == 0:
            bytes_sent += coding.size_bytes
            energy_mj += coding.encode_ms * watts.compute_w + sent_ms * watts.radio_w + coding.decode_ms * watts.idle_w
        else:
            energy_mj += (coding.encode_ms + sent_ms + coding.decode_ms) * watts.idle_w
    for number, link in enumerate(links[: max(tier_of)]):
        latency_ms += link.rtt_ms
        energy_mj += link.rtt_ms * watts.idle_w
        for node, size_bytes in graph.answers:
            if tier_of[node] > number:
                down_ms = link.transfer_ms(size_bytes)
                latency_ms += down_ms
                energy_mj += down_ms * (watts.idle_w if number else watts.radio_w)
    cost = objective.latency * latency_ms + objective.energy * energy_mj + objective.bytes * bytes_sent
    return Partition(
        tier_of=tuple(tier_of),
        crossed=tuple(crossed),
        cost=cost,
        latency_ms=latency_ms,
        energy_mj=energy_mj,
        bytes_sent=bytes_sent,
        drop=drop,
        memory_bytes=memory_bytes,
        lower_bound=cost,
    )


def _is_within(found: Partition, limits: PlanLimits) -> bool:
    figures = ("latency_ms", "energy_mj", "bytes_sent", "drop", "memory_bytes")
    bounds = [(getattr(found, name), getattr(limits, name)) for name in figures]
    return all(bound is None or figure <= bound * (1 + 1e-9) for figure, bound in bounds)

"""A layered graph under links as arrays: every figure of a partition is a sum of the terms here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import UsageError
from edgekit.planning.graph import Crossed, LayeredGraph, Partition
from edgekit.planning.link import Link
from edgekit.planning.plan import Objective, Power

FIGURES = ("latency_ms", "energy_mj", "bytes_sent", "drop", "memory_bytes")
LATENCY, ENERGY, BYTES, DROP, MEMORY = range(5)


@dataclass(frozen=True)
class Terms:
    """n nodes, k tiers, c codings of m values, 5 figures in the order of FIGURES.

    `node` [5, n, k]: of a node on a tier (the way down of its answer included). `coding` [5, c, k - 1]: of a value
    that crosses a link in this form. `fixed` [5, k - 1]: of a link that is used at all. `first_coding` [m] and
    `first_consumer` [m] index into the codings and into `consumer`; `value_of` [c].
    """

    node: np.ndarray
    coding: np.ndarray
    fixed: np.ndarray
    producer: np.ndarray
    consumer: np.ndarray
    first_consumer: np.ndarray
    first_coding: np.ndarray
    value_of: np.ndarray

    @property
    def nodes(self) -> int:
        return int(self.node.shape[1])

    @property
    def tiers(self) -> int:
        return int(self.node.shape[2])

    def crossings(self, weights: np.ndarray, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The cheapest cost of each value on each link, and the coding that has it: both [m, k - 1].

        `allowed` [c, k - 1] rules codings out; at least one a value must remain.
        """
        if not len(self.producer):
            return np.zeros((0, self.tiers - 1)), np.zeros((0, self.tiers - 1), np.int64)
        cost = np.tensordot(weights, self.coding, 1)
        if allowed is not None:
            cost = np.where(allowed, cost, np.inf)
        least = np.minimum.reduceat(cost, self.first_coding, axis=0)
        index = np.arange(len(cost))[:, None]
        at_least = np.where(cost == least[self.value_of], index, len(cost))
        return least, np.minimum.reduceat(at_least, self.first_coding, axis=0)

    def crossed(self, tier_of: np.ndarray) -> np.ndarray:
        """Whether each value crosses each link: [m, k - 1]."""
        if not len(self.producer):
            return np.zeros((0, self.tiers - 1), bool)
        link = np.arange(self.tiers - 1)
        highest = np.maximum.reduceat(tier_of[self.consumer], self.first_consumer)
        return np.asarray((tier_of[self.producer][:, None] <= link) & (link < highest[:, None]))

    def figures(self, tier_of: np.ndarray, coding: np.ndarray) -> np.ndarray:
        """The five sums of a partition whose values cross in `coding` [m, k - 1]."""
        total = self.node[:, np.arange(self.nodes), tier_of].sum(axis=1)
        value, link = np.nonzero(self.crossed(tier_of))
        total = total + self.coding[:, coding[value, link], link].sum(axis=1)
        return np.asarray(total + self.fixed[:, : int(tier_of.max())].sum(axis=1))

    def partition(
        self, tier_of: np.ndarray, coding: np.ndarray, weights: np.ndarray, lower_bound: float | None = None
    ) -> Partition:
        figures = self.figures(tier_of, coding)
        cost = float(weights @ figures)
        value, link = np.nonzero(self.crossed(tier_of))
        own = coding[value, link] - self.first_coding[value]
        return Partition(
            tier_of=tuple(tier_of.tolist()),
            crossed=tuple(Crossed(*row) for row in zip(value.tolist(), link.tolist(), own.tolist(), strict=True)),
            cost=cost,
            lower_bound=cost if lower_bound is None else min(cost, lower_bound),
            **dict(zip(FIGURES, figures.tolist(), strict=True)),
        )


def terms(graph: LayeredGraph, links: Sequence[Link], power: Power | None = None) -> Terms:
    """`links` between consecutive tiers. Without `power`, energy is that of the device's nodes alone.

    Raises UsageError for another number of links than tiers need.
    """
    tiers = graph.tiers
    if len(links) != tiers - 1:
        raise UsageError(f"{len(links)} links between {tiers} tiers, allowed {tiers - 1}")
    node = np.zeros((5, len(graph.works), tiers))
    node[LATENCY] = [work.latency_ms for work in graph.works]
    node[ENERGY, :, 0] = [work.energy_mj for work in graph.works]
    node[MEMORY, :, 0] = [work.memory_bytes for work in graph.works]
    if power is not None:
        node[ENERGY, :, 1:] = power.idle_w * node[LATENCY, :, 1:]
    for answering, size_bytes in graph.answers:
        for index, link in enumerate(links):
            down_ms = link.transfer_ms(size_bytes)
            node[LATENCY, answering, index + 1 :] += down_ms
            if power is not None:
                node[ENERGY, answering, index + 1 :] += down_ms * (power.idle_w if index else power.radio_w)
    codings = [coding for value in graph.values for coding in value.codings]
    size, encode_ms, decode_ms, drop = (
        np.array([getattr(coding, name) for coding in codings], float)
        for name in ("size_bytes", "encode_ms", "decode_ms", "drop")
    )
    coding = np.zeros((5, len(codings), tiers - 1))
    coding[DROP] = drop[:, None]
    fixed = np.zeros((5, tiers - 1))
    for index, link in enumerate(links):
        sent_ms = size * link.transfer_ms(1.0)
        coding[LATENCY, :, index] = encode_ms + sent_ms + decode_ms
        fixed[LATENCY, index] = link.rtt_ms
        if index == 0:
            coding[BYTES, :, 0] = size
        if power is not None:
            encode_w, send_w = (power.idle_w, power.idle_w) if index else (power.compute_w, power.radio_w)
            coding[ENERGY, :, index] = encode_ms * encode_w + sent_ms * send_w + decode_ms * power.idle_w
            fixed[ENERGY, index] = link.rtt_ms * power.idle_w
    consumers, forms = [len(v.consumers) for v in graph.values], [len(v.codings) for v in graph.values]
    return Terms(
        node=node,
        coding=coding,
        fixed=fixed,
        producer=np.array([value.producer for value in graph.values], np.int64),
        consumer=np.array([index for value in graph.values for index in value.consumers], np.int64),
        first_consumer=np.cumsum([0, *consumers])[:-1],
        first_coding=np.cumsum([0, *forms])[:-1],
        value_of=np.repeat(np.arange(len(graph.values)), forms),
    )


def weights_of(objective: Objective) -> np.ndarray:
    """[5]. Raises UsageError for a negative weight: such a sum has no cut."""
    weights = np.array([objective.latency, objective.energy, objective.bytes, 0.0, 0.0])
    if not (weights >= 0).all():
        raise UsageError(f"weights {weights[:3].tolist()} of latency, energy and bytes, allowed from 0")
    return weights

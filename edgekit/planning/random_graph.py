"""Random problems for the planner's tests and benchmarks: graphs whose best partitions are of every kind."""

from __future__ import annotations

import numpy as np

from edgekit.planning.graph import Coding, LayeredGraph, Value, Work
from edgekit.planning.link import Link


def random_graph(
    rng: np.random.Generator, nodes: int, tiers: int = 3, codings: int = 2, reach: int | None = None
) -> LayeredGraph:
    """Each node but the first takes one or two earlier ones, at most `reach` back; values have up to `codings` forms.

    Higher tiers are mostly faster, by factors up to 300; now and then one is slower.
    """
    works: list[Work] = []
    consumers: list[list[int]] = [[] for _ in range(nodes)]
    for index in range(nodes):
        factors = 10.0 ** np.sort(rng.uniform(-1.5, 1.0, tiers))[::-1]
        times = float(rng.exponential(4.0)) * (factors if rng.random() < 0.7 else rng.permutation(factors))
        energy_mj, memory = float(rng.uniform(0, 5) * times[0]), float(rng.integers(0, 100))
        works.append(Work(f"n{index}", tuple(times.tolist()), energy_mj, memory))
        if index:
            first = 0 if reach is None else max(0, index - reach)
            for producer in set(rng.integers(first, index, int(rng.integers(1, 3))).tolist()):
                consumers[producer].append(index)
    values = [_value(rng, producer, after, codings) for producer, after in enumerate(consumers) if after]
    sinks = [index for index, after in enumerate(consumers) if not after]
    return LayeredGraph(tuple(works), tuple(values), tuple((sink, float(rng.integers(1, 4000))) for sink in sinks))


def random_links(rng: np.random.Generator, tiers: int = 3) -> list[Link]:
    """0.4 to 150 Mbit/s; every fifth without a round trip."""
    bandwidths = np.exp(rng.uniform(-1, 5, tiers - 1)).tolist()
    return [Link(bandwidth, float(rng.uniform(0, 8)) if rng.random() < 0.8 else 0.0) for bandwidth in bandwidths]


def _value(rng: np.random.Generator, producer: int, consumers: list[int], codings: int) -> Value:
    raw = float(np.exp(rng.normal(7, 1.8)))
    forms = [Coding(raw)]
    for _ in range(int(rng.integers(0, codings))):
        encode_ms, decode_ms, drop = rng.uniform(0, 1, 3).tolist()
        forms.append(Coding(raw * float(rng.uniform(0.02, 0.5)), encode_ms, decode_ms, drop))
    return Value(producer, tuple(consumers), tuple(forms))

"""A computation in plain numbers: what each node costs on each tier, what its values weigh on a link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.errors import UsageError


@dataclass(frozen=True)
class Work:
    """A node: `latency_ms` on each tier in order; on the first tier (the device) `energy_mj` and `memory_bytes`."""

    name: str
    latency_ms: tuple[float, ...]
    energy_mj: float = 0.0
    memory_bytes: float = 0.0


@dataclass(frozen=True)
class Coding:
    """One form in which a value may cross a link. `drop`, in points, is charged on each link that it crosses."""

    size_bytes: float
    encode_ms: float = 0.0
    decode_ms: float = 0.0
    drop: float = 0.0


@dataclass(frozen=True)
class Value:
    """What node `producer` gives to `consumers`: it crosses a link once, however many of them are above."""

    producer: int
    consumers: tuple[int, ...]
    codings: tuple[Coding, ...]


@dataclass(frozen=True)
class LayeredGraph:
    """`works` in topological order; the first is the source and stays on the device. `answers`: (node, bytes) that
    come back down to the device, uncoded. Execution is sequential, so latencies add up; what crosses a link upwards
    travels together and pays its round trip once.

    Raises UsageError where the numbers do not make such a graph.
    """

    works: tuple[Work, ...]
    values: tuple[Value, ...]
    answers: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.works:
            raise UsageError("a graph without nodes, allowed one or more")
        for work in self.works:
            figures = (*work.latency_ms, work.energy_mj, work.memory_bytes)
            if len(work.latency_ms) != self.tiers or not all(0 <= figure < float("inf") for figure in figures):
                raise UsageError(f"node {work.name!r} costs {figures}, allowed {self.tiers} latencies, all from 0")
        for value in self.values:
            if not value.consumers or not 0 <= value.producer < min(value.consumers) <= max(value.consumers) < len(
                self.works
            ):
                raise UsageError(
                    f"a value goes from node {value.producer} to {value.consumers}, "
                    f"allowed later nodes of {len(self.works)}"
                )
            if not value.codings or not all(_is_cost(coding) for coding in value.codings):
                raise UsageError(f"the value of node {value.producer} has the codings {value.codings}, allowed from 0")
        for node, size_bytes in self.answers:
            if not 0 <= node < len(self.works) or not 0 <= size_bytes < float("inf"):
                raise UsageError(f"node {node} answers {size_bytes} bytes, allowed a node and bytes from 0")

    @property
    def tiers(self) -> int:
        return len(self.works[0].latency_ms)


@dataclass(frozen=True)
class Crossed:
    """Value `value` crosses from tier `link` to the next one in form `coding`; all three are indices."""

    value: int
    link: int
    coding: int


@dataclass(frozen=True)
class Partition:
    """A tier for each node and what comes of it. `memory_bytes` on the device; `bytes_sent` by the device.

    No other partition within the limits costs less than `lower_bound`.
    """

    tier_of: tuple[int, ...]
    crossed: tuple[Crossed, ...]
    cost: float
    latency_ms: float
    energy_mj: float
    bytes_sent: float
    drop: float
    memory_bytes: float
    lower_bound: float


def chain(
    latency_ms: Sequence[Sequence[float]], sizes_bytes: Sequence[float], answer_bytes: float = 0.0
) -> LayeredGraph:
    """Nodes one after the other: `latency_ms[node][tier]`, and the raw size of each node's output but the last's."""
    works = tuple(Work(f"n{index}", tuple(times)) for index, times in enumerate(latency_ms))
    values = tuple(Value(index, (index + 1,), (Coding(size),)) for index, size in enumerate(sizes_bytes))
    return LayeredGraph(works, values, ((len(works) - 1, answer_bytes),))


def _is_cost(coding: Coding) -> bool:
    figures = (coding.size_bytes, coding.encode_ms, coding.decode_ms, coding.drop)
    return all(0 <= figure < float("inf") for figure in figures)

"""The choices as paths: one step after another, each step an arc from one state (tokens alive) to the next.

A path visits every step once. What a path costs is the sum over its arcs, each figure times the multiplier of the
arc's kind, so that a measurement corrects all arcs of a kind at once (`model`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

# error: energy of the outputs' change over that of the outputs.
FIGURES = ("error", "latency_ms", "size_bytes")


@dataclass(frozen=True)
class Arc:
    """`choice`: what a configuration says of this step ("" where there is nothing to say). `kinds`: of the error and
    of the latency, the names of their multipliers. `further`: an error of another kind beside, with its name."""

    source: int
    target: int
    choice: str
    error: float = 0.0
    latency_ms: float = 0.0
    size_bytes: float = 0.0
    kinds: tuple[str, str] = ("", "")
    further: tuple[str, float] = ("", 0.0)


@dataclass(frozen=True)
class Step:
    name: str
    arcs: tuple[Arc, ...]


@dataclass(frozen=True)
class Lattice:
    """Every path from the state `start` through all `steps`. `fixed`: error, ms and bytes that each of them has."""

    steps: tuple[Step, ...]
    start: int
    fixed: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fixed_kind: str = ""

    @cached_property
    def arcs(self) -> tuple[tuple[int, Arc], ...]:
        return tuple((index, arc) for index, step in enumerate(self.steps) for arc in step.arcs)

    @cached_property
    def kinds(self) -> frozenset[str]:
        named = {kind for _, arc in self.arcs for kind in (*arc.kinds, arc.further[0])}
        return frozenset(named | {self.fixed_kind}) - {""}

    def figures(self, multipliers: Mapping[str, float]) -> np.ndarray:
        """float64 [arcs, FIGURES]."""
        rows = [
            (
                arc.error * multipliers.get(arc.kinds[0], 1.0) + arc.further[1] * multipliers.get(arc.further[0], 1.0),
                arc.latency_ms * multipliers.get(arc.kinds[1], 1.0),
                arc.size_bytes,
            )
            for _, arc in self.arcs
        ]
        return np.array(rows, dtype=float).reshape(-1, len(FIGURES))

    def offset(self, multipliers: Mapping[str, float]) -> np.ndarray:
        error, latency, size = self.fixed
        return np.array([error, latency * multipliers.get(self.fixed_kind, 1.0), size])

    def paths(self) -> Iterator[tuple[int, ...]]:
        """All of them, as indices into `arcs`: the reference for solvers, for small lattices only."""
        by_step: list[list[tuple[int, Arc]]] = [[] for _ in self.steps]
        for index, (step, arc) in enumerate(self.arcs):
            by_step[step].append((index, arc))

        def grow(step: int, state: int, path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
            if step == len(self.steps):
                yield path
                return
            for index, arc in by_step[step]:
                if arc.source == state:
                    yield from grow(step + 1, arc.target, (*path, index))

        yield from grow(0, self.start, ())

    def path_of(self, choices: Sequence[str], states: Sequence[int]) -> Path | None:
        """The path that makes `choices` and passes `states`, one of each a step; None where there is none."""
        found = []
        state = self.start
        for step, choice, after in zip(self.steps, choices, states, strict=True):
            arc = next(
                (arc for arc in step.arcs if arc.source == state and arc.target == after and arc.choice == choice), None
            )
            if arc is None:
                return None
            found.append(arc)
            state = after
        return Path(tuple(found))


@dataclass(frozen=True)
class Path:
    arcs: tuple[Arc, ...] = field(default=())

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(arc.choice for arc in self.arcs)

    @property
    def states(self) -> tuple[int, ...]:
        return tuple(arc.target for arc in self.arcs)

    def errors(self) -> dict[str, float]:
        """By kind, without multipliers."""
        return _summed([(arc.kinds[0], arc.error) for arc in self.arcs] + [arc.further for arc in self.arcs])

    def latencies_ms(self) -> dict[str, float]:
        """By kind, without multipliers."""
        return _summed([(arc.kinds[1], arc.latency_ms) for arc in self.arcs])


def _summed(rows: Sequence[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind, value in rows:
        found[kind] = found.get(kind, 0.0) + value
    return found

"""The lattice of a family: its choices with what each costs, from the tables of `knobs`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.costs.operators import WEIGHT_BITS
from edgekit.quantizers.quantize import FLOAT
from edgekit.search.anatomy import HEAD, STEM, Group
from edgekit.search.knobs import Knobs, Measured, PrecisionTable, TokenTable
from edgekit.search.lattice import Arc, Lattice, Path, Step
from edgekit.search.space import NO_METHOD, NO_VARIANT, Configuration, Family

# Methods whose record names whole graph nodes, so that a group in float is theirs to leave out. fp16 loses too little
# for it to matter.
BY_GROUP = ("int8", "int8-dynamic", "int8-weight-only", "int4-weight-only")
IN_FLOAT = "float"


@dataclass(frozen=True)
class Tables:
    """What the lattice of a family is made of. `ladder`: schedules whose latencies are known, all tokens first."""

    groups: tuple[Group, ...]
    precision: PrecisionTable | None
    tokens: TokenTable | None
    ladder: tuple[tuple[int, ...] | None, ...]
    latency: Mapping[str, tuple[Mapping[str, float], ...]]
    variant: Measured
    bits: float


def tables_of(family: Family, knobs: Knobs) -> Tables | None:
    """None where the family cannot be had: the quantizer or the method does not fit the model."""
    workshop = knobs.workshop
    precision = None
    if family.precision != FLOAT:
        precision = knobs.precision(family.variant, family.precision, family.format)
        if precision is None:
            return None
    tokens = None
    ladder: tuple[tuple[int, ...] | None, ...] = (None,)
    if family.method != NO_METHOD:
        tokens = knobs.tokens(family.variant, family.method)
        if tokens is None:
            return None
        ladder = _ladder(tokens)
    precisions = dict.fromkeys((family.precision, FLOAT))
    latency = {
        name: tuple(knobs.latencies(family.variant, family.method, keep, name, family.format) for keep in ladder)
        for name in precisions
    }
    variant = Measured(0.0, 0.0) if family.variant == NO_VARIANT else knobs.variant(family.variant)
    groups = workshop.groups(family.variant, NO_METHOD, None)
    return Tables(groups, precision, tokens, ladder, latency, variant, WEIGHT_BITS.get(family.precision, 32))


def _ladder(tokens: TokenTable) -> tuple[tuple[int, ...], ...]:
    """All tokens, half of them, and a quarter: enough for a parabola."""
    shape = tokens.shape
    content, blocks = shape.tokens - shape.protected, shape.blocks
    half, quarter = (shape.protected + max(1, math.ceil(content / part)) for part in (2, 4))
    return (
        (shape.tokens,) * blocks,
        (half,) * blocks,
        (half, *((quarter,) * (blocks - 1))),
    )


def lattice_of(family: Family, tables: Tables, fixed_bytes: float) -> Lattice:
    """`fixed_bytes`: what an artifact of the format weighs beside its weights."""
    make = _Maker(family, tables)
    steps = make.steps()
    start = tables.tokens.shape.tokens if tables.tokens is not None else 0
    named = {group.name for group in tables.groups}
    rest = sum(
        value for name, value in make.at_all(family.precision).items() if name not in named and "block" not in name
    )
    return Lattice(tuple(steps), start, (tables.variant.error, rest, fixed_bytes), f"{family.format} {FLOAT}")


def configuration_of(family: Family, lattice: Lattice, path: Path) -> Configuration:
    keep = tuple(
        arc.target for step, arc in zip(lattice.steps, path.arcs, strict=True) if step.name.endswith(" tokens")
    )
    floats = tuple(step.name for step, arc in zip(lattice.steps, path.arcs, strict=True) if arc.choice == IN_FLOAT)
    unpruned = not keep or all(count == lattice.start for count in keep)
    return Configuration(family, None if unpruned else keep, floats)


def path_of(lattice: Lattice, configuration: Configuration) -> Path | None:
    """None for a schedule between the lattice's levels."""
    choices, states = [], []
    state = lattice.start
    keep = iter(configuration.keep or ())
    for step in lattice.steps:
        if step.name.endswith(" tokens"):
            state = next(keep, state)
        choices.append(IN_FLOAT if step.name in configuration.floats else "")
        states.append(state)
    return lattice.path_of(choices, states)


class _Maker:
    def __init__(self, family: Family, tables: Tables) -> None:
        self.family, self.tables = family, tables
        self.levels = tables.tokens.levels if tables.tokens is not None else (0,)
        summed = sum(tables.precision.errors.values()) if tables.precision is not None else 0.0
        # What no layer alone explains lies on every group alike.
        self.by_group = family.precision in BY_GROUP and summed > 0

    def at_all(self, precision: str) -> Mapping[str, float]:
        return self.tables.latency[precision][0]

    def steps(self) -> list[Step]:
        made: list[Step] = []
        for group in self.tables.groups:
            block, part = _split(group.name)
            if part == "feed-forward" and self.tables.tokens is not None:
                made.append(Step(f"block {block} tokens", tuple(self._reductions(block))))
            made.append(Step(group.name, tuple(self._precisions(group))))
        if not made:
            made.append(Step(HEAD, tuple(Arc(level, level, "") for level in self.levels)))
        return made

    def _precisions(self, group: Group) -> list[Arc]:
        family, table = self.family, self.tables.precision
        whole = self.levels[0]
        levels = (whole,) if group.name in (STEM,) and self.tables.tokens is not None else self.levels
        arcs = []
        for level in levels:
            if table is None:
                arcs.append(self._arc(group, level, FLOAT, "", 0.0))
                continue
            error = table.errors.get(group.name, 0.0)
            if not self.by_group:
                error = table.whole.error if group is self.tables.groups[0] else 0.0
            arcs.append(self._arc(group, level, family.precision, "", error))
            if self.by_group and table.errors.get(group.name, 0.0) > 0:
                arcs.append(self._arc(group, level, FLOAT, IN_FLOAT, 0.0))
        return arcs

    def _arc(self, group: Group, level: int, precision: str, choice: str, error: float) -> Arc:
        bits = 32 if precision == FLOAT else self.tables.bits
        kinds = (self.family.precision, f"{self.family.format} {precision}")
        return Arc(level, level, choice, error, self._at(group, level, precision), group.weights * bits / 8, kinds)

    def _at(self, group: Group, level: int, precision: str) -> float:
        """By a parabola through the counts of the ladder: projections grow with the tokens, attention with their
        square."""
        rows = self.tables.latency[precision]
        block, part = _split(group.name)
        if self.tables.tokens is None or block is None:
            return rows[0].get(group.name, 0.0)
        counts, times = [], []
        for keep, row in zip(self.tables.ladder, rows, strict=True):
            assert keep is not None
            before = self.tables.tokens.shape.tokens if block == 0 else keep[block - 1]
            count = before if part == "attention" else keep[block]
            if count not in counts:
                counts.append(count)
                times.append(row.get(group.name, 0.0) + self._between(row, block, part))
        fit = np.polyfit(counts, times, len(counts) - 1)
        return max(float(np.polyval(fit, level)), 0.0)

    def _between(self, row: Mapping[str, float], block: int, part: str) -> float:
        """What stands before a feed-forward part where no token is taken away there (its normalisation)."""
        if part != "feed-forward":
            return 0.0
        whole = self.tables.latency[FLOAT][0]
        return whole.get(f"block {block} tokens", 0.0)

    def _reductions(self, block: int | None) -> list[Arc]:
        table = self.tables.tokens
        assert table is not None and block is not None
        kinds = (self.family.method, f"{self.family.format} {self.family.method}")
        return [
            Arc(before, after, "", table.cost(block, before, after), self._reducing(before, after), 0.0, kinds)
            for before in self.levels
            for after in self.levels
            if table.allows(before, after)
        ]

    def _reducing(self, before: int, after: int) -> float:
        """Between what the first block's reduction of all tokens takes, and the second's of half of them."""
        if before == after:
            return 0.0
        plain, half, quarter = self.tables.latency[FLOAT]
        ladder = self.tables.ladder
        rows = []
        for row, block, keep in ((half, 0, ladder[1]), (quarter, 1, ladder[2])):
            assert keep is not None
            name = f"block {block} tokens"
            if name in row:
                start = self.tables.tokens.shape.tokens if block == 0 else keep[0]  # type: ignore[union-attr]
                rows.append((start, max(0.0, row[name] - plain.get(name, 0.0))))
        if len(rows) < 2 or rows[0][0] == rows[1][0]:
            return rows[0][1] if rows else 0.0
        (most, slow), (fewer, fast) = rows
        return max(0.0, fast + (slow - fast) * (before - fewer) / (most - fewer))


def _split(name: str) -> tuple[int | None, str]:
    """`block 3 attention` -> (3, "attention"); (None, "") for what is no block's."""
    parts = name.split(" ", 2)
    return (int(parts[1]), parts[2]) if len(parts) == 3 and parts[0] == "block" else (None, "")

"""The lattice of a family: its choices with what each costs, from the tables of `knobs`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.costs.operators import WEIGHT_BITS
from edgekit.quantizers.quantize import FLOAT
from edgekit.search.anatomy import HEAD, STEM, Group
from edgekit.search.knobs import Knobs
from edgekit.search.lattice import Arc, Lattice, Path, Step
from edgekit.search.narrowing import GONE, Shape
from edgekit.search.space import GONE_CHOICE, NO_METHOD, NO_VARIANT, Configuration, Family
from edgekit.search.tables import Measured, PrecisionTable, TokenTable, WidthTable

# Loses too little for a group in float to matter.
HALF = "fp16"
IN_FLOAT = "float"
# The kinds of the errors that narrower and missing blocks make, whatever the family.
WIDTH, DEPTH = "width", "depth"
# The state of a lattice without tokens. A block that goes is crossed in the negative of the state.
ALONE = 1


@dataclass(frozen=True)
class Tables:
    """What the lattice of a family is made of. `ladder`: schedules whose latencies are known, all tokens first, and
    `latency` by precision and rung; `narrower` by precision at half the heads and units, all tokens."""

    groups: tuple[Group, ...]
    precision: PrecisionTable | None
    tokens: TokenTable | None
    widths: WidthTable | None
    ladder: tuple[tuple[int, ...] | None, ...]
    latency: Mapping[str, tuple[Mapping[str, float], ...]]
    whole: Mapping[str, Mapping[str, float]]
    narrower: Mapping[str, Mapping[str, float]]
    variant: Measured
    bits: float


def tables_of(family: Family, knobs: Knobs, *, with_widths: bool = True) -> Tables | None:
    """None where the family cannot be had: the quantizer or the method does not fit the model, or its knobs were not
    measured in time. Without `with_widths` no block gets narrower."""
    precision = tokens = None
    if family.precision != FLOAT:
        precision = knobs.precision(family.variant, family.precision, family.format)
        if precision is None:
            return None
    ladder: tuple[tuple[int, ...] | None, ...] = (None,)
    if family.method != NO_METHOD:
        tokens = knobs.tokens(family.variant, family.method)
        if tokens is None:
            return None
        ladder = _ladder(tokens)
    widths = knobs.widths(family.variant) if with_widths else None

    def latency(name: str, keep: tuple[int, ...] | None, shape: Shape | None = None) -> Mapping[str, float]:
        method = NO_METHOD if keep is None else family.method
        return knobs.latencies(family.variant, method, keep, name, family.format, shape)

    names = tuple(dict.fromkeys((family.precision, FLOAT)))
    return Tables(
        groups=knobs.workshop.groups(family.variant, NO_METHOD, None),
        precision=precision,
        tokens=tokens,
        widths=widths,
        ladder=ladder,
        latency={name: tuple(latency(name, keep) for keep in ladder) for name in names},
        whole={name: latency(name, None) for name in names},
        narrower={name: latency(name, None, widths.half) for name in names} if widths is not None else {},
        variant=Measured(0.0, 0.0) if family.variant == NO_VARIANT else knobs.variant(family.variant),
        bits=WEIGHT_BITS.get(family.precision, 32),
    )


def _ladder(tokens: TokenTable) -> tuple[tuple[int, ...], ...]:
    """All tokens, half of them, and a quarter: enough for a parabola."""
    shape = tokens.shape
    content, blocks = shape.tokens - shape.protected, shape.blocks
    half, quarter = (shape.protected + max(1, math.ceil(content / part)) for part in (2, 4))
    return (shape.tokens,) * blocks, (half,) * blocks, (half, *((quarter,) * (blocks - 1)))


def lattice_of(family: Family, tables: Tables, fixed_bytes: float) -> Lattice:
    """`fixed_bytes`: what an artifact of the format weighs beside its weights."""
    steps = _Maker(family, tables).steps()
    start = tables.tokens.shape.tokens if tables.tokens is not None else ALONE
    named = {group.name for group in tables.groups}
    spent = tables.latency[family.precision][0]
    rest = sum(value for name, value in spent.items() if name not in named and _split(name)[0] is None)
    return Lattice(tuple(steps), start, (tables.variant.error, rest, fixed_bytes), f"{family.format} {FLOAT}")


def configuration_of(family: Family, lattice: Lattice, path: Path, tables: Tables) -> Configuration:
    keep: list[int] = []
    floats: list[str] = []
    shape: dict[int, list[int]] = {}
    for step, arc in zip(lattice.steps, path.arcs, strict=True):
        block, part = _split(step.name)
        if part == "tokens":
            keep.append(abs(arc.target))
            continue
        precision, _, count = arc.choice.partition("|")
        if precision == IN_FLOAT:
            floats.append(step.name)
        if block is not None and count:
            shape.setdefault(block, []).append(int(count))
    parts = tuple((heads, units) for heads, units in shape.values())
    return Configuration(
        family,
        None if all(count == lattice.start for count in keep) else tuple(keep),
        tuple(floats),
        None if tables.widths is None or parts == tables.widths.whole else parts,
    )


def path_of(lattice: Lattice, configuration: Configuration, tables: Tables) -> Path | None:
    """None for a schedule or a width between the lattice's levels."""
    choices, states = [], []
    state = lattice.start
    keep = iter(configuration.keep or ())
    whole = tables.widths.whole if tables.widths is not None else None
    shape = configuration.shape or whole
    for step in lattice.steps:
        block, part = _split(step.name)
        choice = IN_FLOAT if step.name in configuration.floats else ""
        if part == "tokens":
            state = int(math.copysign(next(keep, abs(state)), state))
        elif block is not None and shape is not None:
            choice += f"|{shape[block][part == 'feed-forward']}"
            if shape[block] == GONE:
                state = -abs(state) if part == "attention" else abs(state)
        choices.append(choice)
        states.append(state)
    return lattice.path_of(choices, states)


class _Maker:
    def __init__(self, family: Family, tables: Tables) -> None:
        self.family, self.tables = family, tables
        self.levels = tables.tokens.levels if tables.tokens is not None else (ALONE,)
        summed = sum(tables.precision.errors.values()) if tables.precision is not None else 0.0
        self.by_group = family.precision != HALF and summed > 0

    def steps(self) -> list[Step]:
        made: list[Step] = []
        for group in self.tables.groups:
            block, part = _split(group.name)
            if part == "feed-forward" and self.tables.tokens is not None:
                made.append(Step(f"block {block} tokens", tuple(self._reductions(block))))
            made.append(Step(group.name, tuple(self._group(group, block, part))))
        return made or [Step(HEAD, (Arc(ALONE, ALONE, ""),))]

    def _group(self, group: Group, block: int | None, part: str) -> list[Arc]:
        levels = self.levels[:1] if group.name == STEM else self.levels
        precisions = self._precisions(group)
        widths = self._widths(block, part)
        arcs = [
            self._arc(group, level, precision, error, width)
            for level in levels
            for precision, error in precisions
            for width in widths
        ]
        # The first block stays: something has to.
        if block and self.tables.widths is not None:
            lost = (DEPTH, self.tables.widths.gone[block] if part == "attention" else 0.0)
            sign = 1 if part == "attention" else -1
            arcs += [Arc(sign * level, -sign * level, GONE_CHOICE, further=lost) for level in levels]
        return arcs

    def _precisions(self, group: Group) -> list[tuple[str, float]]:
        """(precision, error) that the group can have."""
        table, precision = self.tables.precision, self.family.precision
        if table is None:
            return [(FLOAT, 0.0)]
        if not self.by_group:
            return [(precision, table.whole.error if group is self.tables.groups[0] else 0.0)]
        error = table.errors.get(group.name, 0.0)
        return [(precision, error), (FLOAT, 0.0)] if error > 0 else [(precision, 0.0)]

    def _widths(self, block: int | None, part: str) -> list[tuple[str, float, float]]:
        """(how a choice names it, error, share) of the heads or units that can stay."""
        table = self.tables.widths
        if block is None or table is None:
            return [("", 0.0, 1.0)]
        errors = (table.units if part == "feed-forward" else table.heads)[block]
        whole = table.whole[block][part == "feed-forward"]
        return [(f"|{count}", error, count / whole) for count, error in errors.items()]

    def _arc(self, group: Group, level: int, precision: str, error: float, width: tuple[str, float, float]) -> Arc:
        named, lost, share = width
        choice = IN_FLOAT if precision == FLOAT != self.family.precision else ""
        bits = 32 if precision == FLOAT else self.tables.bits
        return Arc(
            level,
            level,
            choice + named,
            error,
            self._at(group, level, precision) * self._narrowed(group.name, precision, share),
            share * group.weights * bits / 8,
            (self.family.precision, f"{self.family.format} {precision}"),
            (WIDTH, lost),
        )

    def _narrowed(self, name: str, precision: str, share: float) -> float:
        """Of the group's milliseconds, by a straight line through the whole and half of it."""
        block, part = _split(name)
        if share == 1 or block is None or self.tables.widths is None:
            return 1.0
        index = part == "feed-forward"
        half = self.tables.widths.half[block][index] / self.tables.widths.whole[block][index]
        if half == 1:
            return 1.0
        whole = self.tables.whole[precision].get(name, 0.0)
        left = self.tables.narrower[precision].get(name, 0.0) / whole if whole else 1.0
        return max(0.05, 1 - (1 - min(1.0, left)) * (1 - share) / (1 - half))

    def _at(self, group: Group, level: int, precision: str) -> float:
        """By a parabola through the counts of the ladder: projections grow with the tokens, attention with their
        square."""
        rows = self.tables.latency[precision]
        block, part = _split(group.name)
        if self.tables.tokens is None or block is None:
            return rows[0].get(group.name, 0.0) + self._between(rows[0], block, part)
        found: dict[int, float] = {}
        for keep, row in zip(self.tables.ladder, rows, strict=True):
            assert keep is not None
            before = self.tables.tokens.shape.tokens if block == 0 else keep[block - 1]
            count = before if part == "attention" else keep[block]
            found.setdefault(count, row.get(group.name, 0.0) + self._between(rows[0], block, part))
        fit = np.polyfit(list(found), list(found.values()), len(found) - 1)
        return max(float(np.polyval(fit, level)), 0.0)

    def _between(self, row: Mapping[str, float], block: int | None, part: str) -> float:
        """What stands before a feed-forward part where no token is taken away there (its normalisation)."""
        return row.get(f"block {block} tokens", 0.0) if part == "feed-forward" else 0.0

    def _reductions(self, block: int | None) -> list[Arc]:
        table = self.tables.tokens
        assert table is not None and block is not None
        kinds = (self.family.method, f"{self.family.format} {self.family.method}")
        made = [
            Arc(before, after, "", table.cost(block, before, after), self._reducing(before, after), 0.0, kinds)
            for before in self.levels
            for after in self.levels
            if table.allows(before, after)
        ]
        gone = [Arc(-level, -level, "") for level in self.levels] if self.tables.widths is not None else []
        return made + gone

    def _reducing(self, before: int, after: int) -> float:
        """Between what the first block's reduction of all tokens takes, and the second's of half of them."""
        tokens = self.tables.tokens
        assert tokens is not None
        if before == after:
            return 0.0
        plain, half, quarter = self.tables.latency[FLOAT]
        middle = self.tables.ladder[1]
        assert middle is not None
        rows = [
            (count, max(0.0, row[name] - plain.get(name, 0.0)))
            for count, row, name in (
                (tokens.shape.tokens, half, "block 0 tokens"),
                (middle[0], quarter, "block 1 tokens"),
            )
            if name in row
        ]
        if len(rows) < 2 or rows[0][0] == rows[1][0]:
            return rows[0][1] if rows else 0.0
        (most, slow), (fewer, fast) = rows
        return max(0.0, fast + (slow - fast) * (before - fewer) / (most - fewer))


def _split(name: str) -> tuple[int | None, str]:
    """`block 3 attention` -> (3, "attention"); (None, "") for what is no block's."""
    parts = name.split(" ", 2)
    return (int(parts[1]), parts[2]) if len(parts) == 3 and parts[0] == "block" else (None, "")

"""What a user would ask for by hand: one knob alone. The model is least sure of settings that it never saw built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgekit.search.families import DEPTH, WIDTH
from edgekit.search.lattice import Arc, Lattice
from edgekit.search.space import GONE_CHOICE, NO_METHOD, Configuration, Family

TOKENS = "tokens"
KNOBS = (DEPTH, WIDTH, TOKENS)
# A knob is tried so often until a recipe that turns it alone meets the limits.
TRIES = 2
# It is not tried where even an additive model expects so many times the points that may be lost.
HOPELESS = 1.5


def alone(family: Family, lattice: Lattice, knob: str) -> Lattice | None:
    """`lattice` with no other knob than `knob` beside the precision; None where the family does not have it."""
    if (family.method != NO_METHOD) != (knob == TOKENS):
        return None

    def stays(arc: Arc) -> bool:
        if arc.choice == GONE_CHOICE:
            return knob == DEPTH
        return knob == WIDTH or arc.further[0] != WIDTH or arc.further[1] == 0

    return replace(lattice, steps=tuple(replace(s, arcs=tuple(filter(stays, s.arcs))) for s in lattice.steps))


def optimistic(multipliers: Mapping[str, float], lattice: Lattice) -> dict[str, float]:
    """As if nothing lost more together than alone; latencies as they were found."""
    errors = {arc.kinds[0] for _, arc in lattice.arcs} | {arc.further[0] for _, arc in lattice.arcs}
    return {kind: min(1.0, value) if kind in errors else value for kind, value in multipliers.items()}


def turns(configuration: Configuration, whole: Sequence[tuple[int, int]] | None) -> str:
    """The knob that `configuration` turns alone, or ""."""
    found = set()
    if configuration.keep is not None:
        found.add(TOKENS)
    for part, before in zip(configuration.shape or (), whole or (), strict=False):
        if part != tuple(before):
            found.add(WIDTH if part[0] else DEPTH)
    return found.pop() if len(found) == 1 else ""

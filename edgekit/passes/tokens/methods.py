"""The reducers that have a name for users and are made of others; the names stand in edgekit.registry."""

from __future__ import annotations

from edgekit.passes.tokens.reducers import KeepBest
from edgekit.passes.tokens.scores import AccumulatedAttention, ClassAttention, NeighbourAware


def keep_by_class() -> KeepBest:
    return KeepBest(ClassAttention())


def keep_by_accumulated() -> KeepBest:
    return KeepBest(AccumulatedAttention())


def keep_by_neighbours() -> KeepBest:
    return KeepBest(NeighbourAware(AccumulatedAttention()))

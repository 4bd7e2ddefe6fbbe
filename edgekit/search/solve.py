"""The best path through a lattice within limits: a mixed-integer program over its arcs, solved exactly by HiGHS.

    min  sum_a w[f] c[a, f] x[a]    x[a] in {0, 1}
    s.t. one arc leaves the start; into a state as many arcs as out of it; sum_a c[a, f] x[a] <= limit[f]

The front is swept by limits on one figure while another is the least it can be (epsilon-constraint; Haimes, Lasdon
and Wismer, IEEE Transactions on Systems, Man and Cybernetics 1971), which also finds what no weights would.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.search.lattice import FIGURES, Arc, Lattice, Path

# What a path may be longer than the best, relative, in the figures that it was not asked to keep small.
NUDGE = 1e-4
SOLVE_S = 10.0
SLACK = 1 + 1e-9


@dataclass(frozen=True)
class Solved:
    """`figures`: error, ms, bytes, as the model expects them."""

    path: Path
    figures: tuple[float, float, float]


def best_path(
    lattice: Lattice,
    multipliers: Mapping[str, float],
    minimize: str,
    limits: Mapping[str, float],
    without: Sequence[Sequence[Collection[Arc]]] = (),
) -> Solved | None:
    """The path of least `minimize` (a name of FIGURES) within `limits` by name; None where there is none.

    Among equals the smaller in the other figures, by a nudge. `without`: what is known already, by step the arcs that
    make it up.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    figures, offset = lattice.figures(multipliers), lattice.offset(multipliers)
    scale = np.maximum(figures.max(0) * len(lattice.steps), 1e-300)
    weights = figures @ (np.where([name == minimize for name in FIGURES], 1.0, NUDGE) / scale)
    flow, ends = _flow(lattice)
    constraints = [LinearConstraint(flow, ends, ends)]
    for name, limit in limits.items():
        index = FIGURES.index(name)
        room = (limit * SLACK - offset[index]) / scale[index]
        constraints.append(LinearConstraint(csr_array(figures[None, :, index] / scale[index]), -np.inf, room))
    place = {(step, arc): column for column, (step, arc) in enumerate(lattice.arcs)}
    for known in without:
        row = np.zeros(len(lattice.arcs))
        row[[place[step, arc] for step, arcs in enumerate(known) for arc in arcs if (step, arc) in place]] = 1
        constraints.append(LinearConstraint(csr_array(row[None]), -np.inf, len(lattice.steps) - 1))
    found = milp(
        weights,
        integrality=np.ones(len(weights)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": SOLVE_S, "mip_rel_gap": 1e-6},
    )
    if found.x is None:
        return None
    taken = np.flatnonzero(found.x > 0.5)
    path = Path(tuple(lattice.arcs[index][1] for index in taken))
    error, latency, size = figures[taken].sum(0) + offset
    return Solved(path, (float(error), float(latency), float(size)))


def front(
    lattice: Lattice,
    multipliers: Mapping[str, float],
    limits: Mapping[str, float],
    points: int,
    axis: str = "latency_ms",
    minimize: str = "error",
) -> list[Solved]:
    """At most `points` paths between the least `axis` and the least `minimize`, evenly along `axis`; none twice."""
    ends = [best_path(lattice, multipliers, name, limits) for name in (axis, minimize)]
    index = FIGURES.index(axis)
    if ends[0] is None or ends[1] is None:
        return []
    low, high = ends[0].figures[index], ends[1].figures[index]
    found = [ends[1], ends[0]]
    for bound in np.linspace(low, high, points)[1:-1] if high > low * SLACK else ():
        solved = best_path(lattice, multipliers, minimize, {**limits, axis: min(bound, limits.get(axis, np.inf))})
        if solved is not None:
            found.append(solved)
    distinct = {one.path: one for one in found}
    return sorted(distinct.values(), key=lambda one: one.figures[index])


def _flow(lattice: Lattice) -> tuple[object, np.ndarray]:
    """Conservation at every (step, state): what comes in goes out; one unit leaves the start."""
    from scipy.sparse import coo_array

    rows: dict[tuple[int, int], int] = {(0, lattice.start): 0}
    entries: list[tuple[int, int, float]] = []
    last = len(lattice.steps)
    for column, (step, arc) in enumerate(lattice.arcs):
        entries.append((rows.setdefault((step, arc.source), len(rows)), column, 1.0))
        if step + 1 < last:
            entries.append((rows.setdefault((step + 1, arc.target), len(rows)), column, -1.0))
    places, columns, values = (np.array(part) for part in zip(*entries, strict=True))
    ends = np.zeros(len(rows))
    ends[0] = 1.0
    return coo_array((values, (places, columns)), shape=(len(rows), len(lattice.arcs))).tocsr(), ends

"""The solver against every path of small random lattices."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.search.lattice import FIGURES, Arc, Lattice, Path, Step
from edgekit.search.solve import best_path, front

MULTIPLIERS = {"rounding": 1.5, "int8": 0.7}


def random_lattice(seed: int, steps: int = 4, states: int = 3) -> Lattice:
    """Tokens only ever fall; two precisions at each step."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(steps):
        arcs = []
        for source in range(states):
            for target in range(source + 1):
                error = 0.0 if source == target else float(rng.random())
                arcs.append(Arc(source, target, "", error, float(rng.random()), 4.0, ("tokens", "fp32")))
                arcs.append(Arc(source, target, "int8", error + 0.1, float(rng.random()), 1.0, ("rounding", "int8")))
        made.append(Step(f"step {index}", tuple(arcs)))
    return Lattice(tuple(made), states - 1, (0.01, 0.2, 5.0), "fp32")


def figures(lattice: Lattice, indices: tuple[int, ...]) -> np.ndarray:
    return lattice.figures(MULTIPLIERS)[list(indices)].sum(0) + lattice.offset(MULTIPLIERS)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("minimize", FIGURES)
def test_the_best_path_within_limits_is_that_of_all_paths(seed: int, minimize: str) -> None:
    lattice = random_lattice(seed)
    known = np.array([figures(lattice, path) for path in lattice.paths()])
    limits = {name: float(np.quantile(known[:, index], 0.4)) for index, name in enumerate(FIGURES) if name != minimize}
    fits = np.all([known[:, FIGURES.index(name)] <= limit for name, limit in limits.items()], axis=0)
    found = best_path(lattice, MULTIPLIERS, minimize, limits)
    if not fits.any():
        assert found is None
        return
    index = FIGURES.index(minimize)
    assert found is not None
    # The nudge towards the other figures may cost so much of this one.
    assert found.figures[index] == pytest.approx(known[fits, index].min(), abs=1e-3 * np.ptp(known[:, index]))
    assert all(found.figures[FIGURES.index(name)] <= limit * (1 + 1e-6) for name, limit in limits.items())


def test_paths_that_are_known_are_left_out_one_by_one() -> None:
    lattice = random_lattice(7, steps=2, states=2)
    known: list[Path] = []
    while (found := best_path(lattice, {}, "error", {}, [[(arc,) for arc in one.arcs] for one in known])) is not None:
        known.append(found.path)
    assert len(set(known)) == len(known) == len(list(lattice.paths()))
    errors = [sum(arc.error for arc in path.arcs) for path in known]
    assert errors == sorted(errors) or np.allclose(errors, sorted(errors), atol=1e-3)


def test_nothing_fits_a_limit_below_the_least() -> None:
    assert best_path(random_lattice(1), {}, "error", {"latency_ms": 0.1}) is None


@pytest.mark.parametrize("seed", range(3))
def test_the_front_is_not_beaten_and_runs_from_end_to_end(seed: int) -> None:
    lattice = random_lattice(seed)
    known = np.array([figures(lattice, path) for path in lattice.paths()])[:, :2]
    found = np.array([one.figures[:2] for one in front(lattice, MULTIPLIERS, {}, 8)])
    assert found[:, 1].min() == pytest.approx(known[:, 1].min(), rel=1e-3)
    assert found[:, 0].min() == pytest.approx(known[:, 0].min(), abs=2e-3)
    for error, latency in found:
        assert not ((known[:, 0] < error - 5e-3) & (known[:, 1] < latency - 5e-3)).any()
    assert (np.diff(found[:, 1]) >= 0).all()

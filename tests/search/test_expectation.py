"""The repaired model: what errors are worth, how near a limit it dares to go, what counts as known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edgekit.devices.device import load_device
from edgekit.quantizers.quantize import FLOAT
from edgekit.search.anatomy import Group
from edgekit.search.expectation import APART, Expectation
from edgekit.search.families import WIDTH, Tables
from edgekit.search.lattice import Arc, Lattice, Path, Step
from edgekit.search.limits import SearchLimits
from edgekit.search.model import Curve
from edgekit.search.solve import best_path
from edgekit.search.space import Configuration, Family
from edgekit.search.tables import Measured, PrecisionTable
from edgekit.search.verify import Verified

PARTS = ("stem", "part", "head")
INT8, WHOLE = Family("onnx", "int8"), Family("onnx", FLOAT)
CURVE = Curve((0.0, 1.0), (0.0, 10.0))


def tables(family: Family, error: float) -> Tables:
    latency = {FLOAT: (dict.fromkeys(PARTS, 2.0),), "int8": (dict.fromkeys(PARTS, 1.0),)}
    errors = PrecisionTable(dict.fromkeys(PARTS, error), Measured(3 * error, 1.0)) if family == INT8 else None
    groups = tuple(Group(name, (name,), 100) for name in PARTS)
    return Tables(groups, errors, None, None, (None,), latency, {}, {}, Measured(0, 0), 8)


def expectation() -> Expectation:
    known = {family: tables(family, 1e-3) for family in (WHOLE, INT8)}
    limits = SearchLimits(latency_ms=3.0, drop=5.0)
    return Expectation(load_device("raspberry-pi-5"), limits, known, 0.0, curve=CURVE)


def verified(
    drop: float, error: float, half: float, latency_ms: float = 3.0, floats: tuple[str, ...] = (), failed: str = ""
) -> Verified:
    configuration = Configuration(INT8, None, floats)
    return Verified(
        configuration, error, drop, drop - half, drop + half, latency_ms, latency_ms, 1.0, 300.0, 300.0, failed=failed
    )


def test_an_error_is_worth_the_points_that_it_cost_as_far_as_they_are_known() -> None:
    model = expectation()
    assert model.effective(verified(2.0, 0.2, 0.0)) == pytest.approx(0.2)
    assert model.effective(verified(1.0, 0.2, 0.0)) == pytest.approx(0.1)
    assert 0.1 < model.effective(verified(1.0, 0.2, 1.0)) < 0.2
    assert model.effective(verified(1.0, 0.2, 1.0)) == pytest.approx(math.sqrt(0.1 * 0.2))
    assert model.effective(verified(-1.0, 0.2, 0.1)) == 0.2
    assert model.effective(verified(1e-3, 0.2, 0.0)) == pytest.approx(0.2 / APART)


def test_a_limit_is_kept_as_much_tighter_as_artifacts_ran_over_it() -> None:
    model, bounds = expectation(), {"latency_ms": 3.0, "error": 0.5}
    assert model.eased(INT8, bounds, ()) == bounds
    slow = verified(1.0, 0.1, 0.1, latency_ms=3.15)  # 3 ms expected
    eased = model.eased(INT8, bounds, (slow,))
    assert eased == {"latency_ms": pytest.approx(3.0 / 1.05), "error": 0.5}
    assert model.eased(WHOLE, bounds, (slow,)) == bounds
    assert model.eased(INT8, bounds, (verified(1.0, 0.1, 0.1, latency_ms=2.9),)) == bounds
    assert model.eased(INT8, bounds, (verified(1.0, 0.1, 0.1, latency_ms=6.0),)) == bounds  # far from the limit
    assert model.eased(INT8, {"error": 0.5}, (slow,)) == {"error": 0.5}


def test_everything_in_float_is_left_to_the_float_family() -> None:
    model = expectation()
    lattice = model.lattices[INT8]
    solved = best_path(lattice, {}, "error", {}, model.known(INT8, ()))
    assert solved is not None
    assert sorted(solved.path.choices) == ["", "float", "float"]
    assert model.known(WHOLE, ()) == []


def test_what_was_built_is_known_and_nothing_else() -> None:
    model = expectation()
    built = verified(1.0, 3e-3, 0.1)
    known = model.known(INT8, (built, replace(built, configuration=Configuration(WHOLE))))
    assert len(known) == 2
    assert [[arc.choice for arc in arcs] for arcs in known[1]] == [[""], [""], [""]]


@pytest.mark.parametrize(
    ("rounding", "latency_ms", "alternatives"),
    [(1e-6, 2.9, 2), (1e-6, 3.1, 1), (1e-2, 2.9, 1)],
)
def test_another_group_in_float_is_the_same_recipe_where_rounding_loses_nothing(
    rounding: float, latency_ms: float, alternatives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the limit on the latency it is not: another group may bring it under."""
    narrow = Arc(1, 1, "|2", rounding, 1.0, 10.0, ("int8", "onnx int8"), (WIDTH, 1e-2))
    in_float = replace(narrow, choice="float|2", error=0.0, kinds=("int8", "onnx fp32"))
    other = replace(narrow, choice="|4", further=(WIDTH, 0.0))
    lattice = Lattice((Step("block 0 attention", (narrow, in_float, other)),), 1)
    model = expectation()
    model.lattices[INT8] = lattice
    monkeypatch.setattr(model, "path", lambda configuration: (lattice, Path((narrow,))))
    all_float, built = model.known(INT8, (verified(1.0, 1e-2, 0.1, latency_ms),))
    assert all_float == (frozenset((in_float,)),)
    assert len(built[0]) == alternatives and narrow in built[0] and other not in built[0]

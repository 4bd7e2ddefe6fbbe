"""Solve, verify, repair, against a world whose laws the model does not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.devices.device import load_device
from edgekit.errors import PlanError
from edgekit.search.anatomy import Group
from edgekit.search.expectation import Expectation
from edgekit.search.families import Tables
from edgekit.search.limits import SearchLimits
from edgekit.search.loop import FRONT_VERIFIED, Goal, Search
from edgekit.search.space import Configuration, Family
from edgekit.search.state import State
from edgekit.search.tables import Measured, PrecisionTable
from edgekit.search.verify import Verified

PARTS = ("part 1", "part 2", "part 3", "part 4")
ERRORS = dict(zip(PARTS, (4e-4, 1e-4, 3e-4, 2e-4), strict=True))
FLOAT_MS = dict(zip(PARTS, (4.0, 3.0, 2.0, 1.0), strict=True))
INT8 = Family("onnx", "int8")


def tables(family: Family) -> Tables:
    int8 = family.precision == "int8"
    table = PrecisionTable(ERRORS, Measured(sum(ERRORS.values()), 1.0)) if int8 else None
    latency = {"fp32": (FLOAT_MS,), "int8": ({name: ms / 2 for name, ms in FLOAT_MS.items()},)}
    groups = tuple(Group(name, (name,), 1000) for name in PARTS)
    return Tables(groups, table, None, None, (None,), latency, {}, {}, Measured(0, 0), 8)


@dataclass
class World:
    """int8 is slower here than the model thinks, and errors are larger; 2 points are lost for each thousandth."""

    int8_ms: float = 0.7
    error: float = 1.6
    broken: frozenset[Configuration] = frozenset()
    built: list[Configuration] = field(default_factory=list)

    def verify(self, configuration: Configuration, expected: Mapping[str, float]) -> Any:
        self.built.append(configuration)
        if configuration in self.broken:
            return SimpleNamespace(verified=Verified(configuration, failed="does not export"))
        return SimpleNamespace(verified=self.of(configuration, expected))

    def of(self, configuration: Configuration, expected: Mapping[str, float] | None = None) -> Verified:
        int8 = [] if configuration.family.precision == "fp32" else [p for p in PARTS if p not in configuration.floats]
        error = self.error * sum(ERRORS[name] for name in int8)
        ms = sum(FLOAT_MS[name] * (self.int8_ms if name in int8 else 1.0) for name in PARTS)
        size = 500.0 + sum(1000.0 if name in int8 else 4000.0 for name in PARTS)
        drop = 2e3 * error
        return Verified(configuration, error, drop, drop, drop, ms, ms, ms, size, size, expected=expected or {})


class Searched(Search):
    """Measured already: the tables are given."""

    def measure(self, deadline: float) -> None:
        known = {family: tables(family) for family in self.families}
        self.model = Expectation(self.knobs.workshop.device, self.limits, known, 0.0)


def make(
    world: World, folder: Path, limits: SearchLimits, goal: Goal = "quality", seconds: float = 1e6, step: float = 0.0
) -> Searched:
    ticks = iter(range(10**6))
    workshop = SimpleNamespace(device=load_device("raspberry-pi-5"), original=SimpleNamespace(name="net"))
    return Searched(
        SimpleNamespace(workshop=workshop),  # type: ignore[arg-type]
        world,  # type: ignore[arg-type]
        State(folder / "state.json"),
        (Family("onnx", "fp32"), INT8),
        limits,
        goal,
        seconds,
        clock=lambda: step * next(ticks),
    )


def every() -> list[Configuration]:
    floats = chain.from_iterable(combinations(PARTS, count) for count in range(len(PARTS)))
    return [Configuration(Family("onnx", "fp32")), *(Configuration(INT8, None, names) for names in floats)]


@pytest.mark.parametrize("latency", [7.2, 8.0, 9.1, 9.9])
def test_the_choice_is_the_best_of_all_although_the_model_was_wrong(tmp_path: Path, latency: float) -> None:
    world, limits = World(), SearchLimits(latency_ms=latency, drop=5.0)
    outcome = make(world, tmp_path, limits).run()
    fitting = [world.of(one) for one in every() if world.of(one).latency_ms <= latency]
    assert outcome.chosen.drop == pytest.approx(min(one.drop for one in fitting))
    assert outcome.complete


def test_the_fastest_within_a_drop_is_found(tmp_path: Path) -> None:
    world, limits = World(), SearchLimits(drop=1.2)
    outcome = make(world, tmp_path, limits, "latency").run()
    fitting = [world.of(one) for one in every() if world.of(one).drop <= 1.2]
    assert outcome.chosen.latency_ms == pytest.approx(min(one.latency_ms for one in fitting))


def test_expectations_come_near_what_is_found_after_a_few_repairs(tmp_path: Path) -> None:
    outcome = make(World(), tmp_path, SearchLimits(latency_ms=8.5, drop=5.0)).run()
    late = [one for one in outcome.verified if one.expected][4:]
    assert late
    for one in late:
        assert one.expected["latency_ms"] == pytest.approx(one.latency_ms, rel=0.05)
        assert one.expected["drop"] == pytest.approx(one.drop, abs=0.3)


def test_what_nothing_meets_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nearest.*ms of latency, allowed 6") as caught:
        make(World(), tmp_path, SearchLimits(latency_ms=6.0, drop=5.0)).run()
    assert caught.value.binding == "latency_ms"
    assert "but" not in caught.value.message  # everything in int8: 7 ms
    assert "7 ms" in caught.value.message
    assert "nothing else is expected to come nearer" in caught.value.hint
    found = caught.value.found
    assert found.choice is None
    assert len(found.front) > 1
    assert min(one.latency_ms for one in found.front) == pytest.approx(7.0)
    with pytest.raises(PlanError) as caught:
        make(World(), tmp_path / "hasty", SearchLimits(latency_ms=6.0, drop=5.0), seconds=3.0, step=1.0).run()
    assert "--budget" in caught.value.hint


def test_each_broken_limit_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        make(World(), tmp_path, SearchLimits(size_bytes=100.0, drop=0.01)).run()
    assert "size" in caught.value.binding


def test_the_front_is_made_of_verified_recipes_that_none_beats(tmp_path: Path) -> None:
    outcome = make(World(), tmp_path, SearchLimits(drop=5.0), "latency").run()
    assert len(outcome.front) >= 4
    for one in outcome.front:
        assert not any(
            other.drop < one.drop and other.latency_ms < one.latency_ms and other.size_bytes < one.size_bytes
            for other in outcome.verified
        )


def test_a_recipe_that_cannot_be_built_is_passed_over(tmp_path: Path) -> None:
    best = make(World(), tmp_path / "a", SearchLimits(latency_ms=8.0, drop=5.0)).run().chosen.configuration
    world = World(broken=frozenset({best}))
    outcome = make(world, tmp_path / "b", SearchLimits(latency_ms=8.0, drop=5.0)).run()
    assert outcome.chosen.configuration != best
    assert best in world.built


def test_the_time_is_kept_and_the_best_so_far_is_given(tmp_path: Path) -> None:
    world = World()
    outcome = make(world, tmp_path, SearchLimits(drop=5.0), "latency", seconds=8.0, step=1.0).run()
    assert not outcome.complete
    assert 1 <= len(world.built) <= 5
    assert outcome.chosen.latency_ms == min(one.latency_ms for one in outcome.verified)


def test_an_interrupted_search_goes_on_with_what_it_knows(tmp_path: Path) -> None:
    limits = SearchLimits(latency_ms=8.0, drop=5.0)
    first = World()
    with pytest.raises(PlanError):
        make(first, tmp_path, SearchLimits(latency_ms=1.0, drop=5.0), seconds=6.0, step=1.0).run()
    second = World()
    outcome = make(second, tmp_path, limits).run()
    assert first.built
    assert not set(first.built) & set(second.built)
    assert {one.configuration for one in outcome.verified} >= set(first.built)


def test_a_precision_that_failed_twice_is_not_tried_again(tmp_path: Path) -> None:
    world = World(broken=frozenset(one for one in every() if one.family == INT8))
    with pytest.raises(PlanError, match="nearest, onnx fp32"):
        make(world, tmp_path, SearchLimits(latency_ms=8.0, drop=5.0)).run()
    assert sum(one.family == INT8 for one in world.built) == 2


def test_far_beyond_the_limits_a_few_attempts_do(tmp_path: Path) -> None:
    world = World()
    with pytest.raises(PlanError, match="nearest"):
        make(world, tmp_path, SearchLimits(latency_ms=1.0, drop=5.0)).run()
    assert len(world.built) <= FRONT_VERIFIED + 2

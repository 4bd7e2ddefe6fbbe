from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.capacity.demand import Objective
from edgekit.errors import PlanError
from edgekit.search.state import State
from edgekit.tuning.halving import Rung
from edgekit.tuning.search import Tuned, state_path, tune
from edgekit.tuning.settings import Settings, space
from edgekit.tuning.trial import Load, Trial

OBJECTIVE = Objective(0.95, 50.0)
SPACE = space([("whole", True)], 1, 50.0)


def _attempt(settings: Settings, seconds: float) -> Trial:
    """Best at batches of 8 that wait 2 ms."""
    rate = 100.0 - 5 * abs(settings.max_batch - 8) - abs(settings.max_delay_ms - 2)
    return Trial(max(1.0, rate), 40.0, 120.0, (Load(rate, 40.0, 60, 0),))


def test_the_best_settings_are_found_and_every_one_has_its_longest_trial(tmp_path: Path) -> None:
    found = tune(SPACE, OBJECTIVE, _attempt, State(tmp_path / "state.json"), 1.0)
    assert (found.best.max_batch, found.best.max_delay_ms) == (8, 2.0)
    assert set(found.trials) == set(SPACE)
    assert found.trials[found.best][0] == found.rungs[-1].seconds > 1
    assert found.trial.rate_hz == 100


def test_the_usual_settings_are_tried_as_long_as_the_best(tmp_path: Path) -> None:
    tried: list[tuple[Settings, float]] = []

    def counted(settings: Settings, seconds: float) -> Trial:
        tried.append((settings, seconds))
        return _attempt(settings, seconds)

    poor = Settings("whole", 32, 10.0)
    found = tune(SPACE, OBJECTIVE, counted, State(tmp_path / "state.json"), 1.0, usual=poor)
    assert found.usual == (poor, _attempt(poor, 1.0))
    assert tried[-1] == (poor, found.rungs[-1].seconds)
    again = tune(SPACE, OBJECTIVE, counted, State(tmp_path / "other.json"), 1.0, usual=found.best)
    assert again.usual == (found.best, found.trial)  # its trial is there already
    assert len(tried) == 2 * len(tried[: len(tried) // 2]) + 1


def test_an_interruption_costs_one_trial(tmp_path: Path) -> None:
    path, made = tmp_path / "state.json", []

    def interrupted(settings: Settings, seconds: float) -> Trial:
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append((settings, seconds))
        return _attempt(settings, seconds)

    with pytest.raises(KeyboardInterrupt):
        tune(SPACE, OBJECTIVE, interrupted, State(path), 1.0)
    again: list[tuple[Settings, float]] = []

    def counted(settings: Settings, seconds: float) -> Trial:
        again.append((settings, seconds))
        return _attempt(settings, seconds)

    found = tune(SPACE, OBJECTIVE, counted, State(path), 1.0)
    assert not set(again) & set(made)
    assert len(again) + len(made) == sum(len(rung.found) for rung in found.rungs)
    assert found == tune(SPACE, OBJECTIVE, _attempt, State(tmp_path / "other.json"), 1.0)


def test_nothing_that_holds_it_names_the_nearest(tmp_path: Path) -> None:
    def slow(settings: Settings, seconds: float) -> Trial:
        return Trial(0.0, 70.0 + settings.max_batch, 10.0, ())

    with pytest.raises(PlanError) as caught:
        tune(SPACE, OBJECTIVE, slow, State(tmp_path / "state.json"), 1.0)
    assert "71 ms" in caught.value.message
    assert "--max-batch 1 " in caught.value.hint and "--slo p95=72.5ms" in caught.value.hint


def test_another_objective_or_bundle_has_another_state() -> None:
    paths = {
        state_path(digest, objective, seconds, 0)
        for digest in ("a", "b")
        for objective in (OBJECTIVE, Objective(0.99, 50.0))
        for seconds in (1.0, 2.0)
    }
    assert len(paths) == 8


def test_a_machine_that_slows_down_between_rounds_is_told() -> None:
    few = [Settings("whole", max_batch=size) for size in (1, 2, 4, 8)]

    def rung(seconds: float, rates: dict[int, float]) -> Rung[Settings, Trial]:
        found = [(one, Trial(rates[one.max_batch], 9.0, 0.0, ())) for one in few if one.max_batch in rates]
        return Rung(seconds, tuple(found))

    first = rung(1.0, {1: 100.0, 2: 200.0, 4: 300.0, 8: 400.0})
    assert Tuned(few[3], (first, rung(2.0, {4: 150.0, 8: 200.0}))).drift() == 0.5
    assert Tuned(few[3], (first, rung(2.0, {4: 300.0, 8: 400.0}))).drift() == 1.0
    assert Tuned(few[3], (first,)).drift() == 1.0

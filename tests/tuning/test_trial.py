from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle import Bundle
from edgekit.capacity.demand import Objective
from edgekit.tuning.settings import Settings
from edgekit.tuning.trial import Load, Trial, climb, run_trial

OBJECTIVE = Objective(0.95, 50.0)


def _server(breaks_at: float, hiccups: int = 0) -> tuple[list[float], object]:
    """A server that holds the objective below a rate; its first `hiccups` answers are late all the same."""
    asked: list[float] = []

    def at(rate_hz: float) -> Load:
        asked.append(rate_hz)
        late = rate_hz >= breaks_at or len(asked) <= hiccups
        return Load(rate_hz, 80.0 if late else 20.0, 100, 0)

    return asked, at


@pytest.mark.parametrize("breaks_at", [90.0, 62.0, 33.0])
def test_the_highest_rate_is_found_to_a_quarter_of_a_step(breaks_at: float) -> None:
    _, at = _server(breaks_at)
    found = climb(at, 100.0, OBJECTIVE)  # type: ignore[arg-type]
    # Steps of LOADS are 20 of 100 at most; halved twice.
    assert breaks_at - 5 <= found.rate_hz < breaks_at
    assert found.percentile_ms == 20.0


def test_a_server_that_never_breaks_holds_the_highest_load() -> None:
    asked, at = _server(1e9)
    assert climb(at, 100.0, OBJECTIVE).rate_hz == max(asked) == pytest.approx(105)  # type: ignore[arg-type]


def test_one_hiccup_does_not_decide() -> None:
    _, steady = _server(90.0)
    _, once = _server(90.0, hiccups=1)
    assert climb(once, 100.0, OBJECTIVE).rate_hz == climb(steady, 100.0, OBJECTIVE).rate_hz  # type: ignore[arg-type]


def test_a_server_that_is_too_slow_holds_nothing_and_says_how_near_it_came() -> None:
    found = climb(lambda rate: Load(rate, 60.0 + rate, 100, 0), 100.0, OBJECTIVE)
    assert found.rate_hz == 0
    assert found.percentile_ms == pytest.approx(60 + min(load.rate_hz for load in found.loads))


def test_rates_count_first_and_then_how_near_it_came() -> None:
    trials = [Trial(rate, late, 1.0, ()) for rate, late in ((0.0, 90.0), (0.0, 60.0), (5.0, 49.0), (7.0, 50.0))]
    assert sorted(trials, key=lambda trial: trial.score) == trials


def test_a_trial_survives_being_kept() -> None:
    trial = Trial(3.0, float("inf"), 9.0, (Load(3.0, 1.5, 60, 2),))
    assert Trial.of(trial.to_json()) == trial


def test_a_real_node_holds_an_easy_objective(whole_bundle: Path) -> None:
    with Bundle.open(whole_bundle) as bundle:
        manifest = bundle.manifest
    easy = Objective(0.5, 5000.0)
    found = run_trial(whole_bundle, manifest, "edge", Settings("whole", 4), easy, 0.5, 0)
    assert found.rate_hz > 0 and found.closed_hz > 0
    assert found.percentile_ms <= easy.limit_ms
    assert all(load.requests > 0 for load in found.loads)


def test_a_trial_is_kept_as_json_and_read_again() -> None:
    trial = Trial(9.0, 5.0, 12.0, (Load(9.0, 5.0, 60, 0), Load(20.0, float("inf"), 60, 60)))
    assert Trial.of(json.loads(json.dumps(trial.to_json()))) == trial


@pytest.mark.parametrize(
    "changed",
    [
        {"rate_hz": "9"},
        {"rate_hz": True},
        {"rate_hz": None},
        {"percentile_ms": float("nan")},
        {"loads": 3},
        {"loads": [3]},
        {"loads": [{"rate_hz": 1.0}]},
        {"more": 1},
    ],
)
def test_what_is_no_trial_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Trial.of({**Trial(9.0, 5.0, 12.0, ()).to_json(), **changed})
    with pytest.raises(ValueError):
        Trial.of([changed])

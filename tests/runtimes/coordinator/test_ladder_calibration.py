from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import DataError
from edgekit.runtimes.coordinator.confidence import calibration_error
from edgekit.runtimes.coordinator.ladder_calibration import calibrate_ladder

COSTS = (1.0, 2.0, 3.0)


def answers(count: int = 4000, classes: int = 5) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Logits that know their class better with depth, and boast: three times as high as they should be."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, count)
    clear = rng.exponential(1.0, (count, 1))
    onehot = np.eye(classes)[truth]
    rows = [3 * (skill * clear * onehot + rng.gumbel(0, 1, (count, classes)) / 2) for skill in (1.5, 2.5, 4.0)]
    return rows[:2], rows[2], truth


def test_a_calibration_error_is_what_is_told_by_hand() -> None:
    sure, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, False, True, True])
    assert calibration_error(sure, right, bins=10) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == pytest.approx(0)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0  # the last bin holds its upper end


def test_temperatures_take_the_boast_out_of_samples_that_they_did_not_see() -> None:
    early, final, truth = answers()
    found = calibrate_ladder(early, final, truth, COSTS, 1.0)
    assert all(temperature > 1.5 for temperature in found.temperatures)
    assert all(error < 0.5 * raw for error, raw in zip(found.errors, found.raw_errors, strict=True))
    assert found.judged == len(truth) // 2


@pytest.mark.parametrize("max_drop", [0.2, 1.0, 4.0])
def test_the_limit_holds_and_more_of_it_buys_time(max_drop: float) -> None:
    early, final, truth = answers()
    found = calibrate_ladder(early, final, truth, COSTS, max_drop)
    assert 100 * ((final.argmax(1) == truth).mean() - found.reached.accuracy) <= max_drop + 1e-6
    assert found.reached.cost <= calibrate_ladder(early, final, truth, COSTS, max_drop / 2).reached.cost


def test_the_schedule_leaves_room_for_what_went_on_and_never_rises() -> None:
    early, final, truth = answers()
    found = calibrate_ladder(early, final, truth, COSTS, 1.0)
    passing = 1 - np.cumsum(found.reached.left[:-1])
    assert np.all(np.asarray(found.schedule.shares) >= passing - 1e-4)
    assert found.schedule.worst(COSTS) <= COSTS[-1]
    exits = found.exits(["a", "b"], 0.5)
    assert [exit.part for exit in exits] == ["a", "b"]
    assert [exit.curve[0].answered for exit in exits] == list(found.reached.left[:2])


def test_logits_that_do_not_fit_are_told() -> None:
    early, final, truth = answers(10)
    with pytest.raises(DataError, match="allowed the same"):
        calibrate_ladder([early[0][:5], early[1]], final, truth, COSTS, 1.0)
    with pytest.raises(DataError, match="N, from 2"):
        calibrate_ladder([logits[:1] for logits in early], final[:1], truth[:1], COSTS, 1.0)

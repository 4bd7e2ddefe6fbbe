"""Multipliers and the curve of points over error."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.search.model import LEAST, Curve, fit_curve, fit_multipliers, joint_curve


def test_multipliers_come_near_the_true_ones_and_nearer_with_more_measurements() -> None:
    rng = np.random.default_rng(0)
    truth = {"fp32": 1.3, "int8": 0.6}
    rows = [{kind: float(rng.random()) + 0.1 for kind in truth} for _ in range(20)]
    measured = [sum(truth[kind] * value for kind, value in row.items()) for row in rows]
    few, many = (fit_multipliers(rows[:count], measured[:count]) for count in (2, 20))
    for kind, value in truth.items():
        assert many[kind] == pytest.approx(value, abs=0.02)
        assert abs(many[kind] - value) <= abs(few[kind] - value) + 1e-9


def test_what_was_never_measured_keeps_no_multiplier() -> None:
    assert fit_multipliers([], []) == {}
    assert fit_multipliers([{"a": 0.0}], [1.0]) == {}
    assert set(fit_multipliers([{"a": 1.0, "b": 0.0}], [2.0])) == {"a"}


def test_one_measurement_is_not_believed_without_bound() -> None:
    assert fit_multipliers([{"a": 1.0}], [1e-6])["a"] >= LEAST


def test_the_curve_rises_through_noisy_points_and_starts_at_nothing_lost() -> None:
    curve = fit_curve([1.0, 2.0, 3.0, 4.0], [0.5, 0.3, 1.0, 0.8], [1, 1, 1, 1])
    values = [curve(error) for error in np.linspace(0, 6, 50)]
    assert values[0] == 0
    assert values == sorted(values)
    assert curve(1.5) == pytest.approx(0.4)
    assert curve(3.5) == pytest.approx(0.9)


def test_heavier_measurements_pull_the_curve() -> None:
    assert fit_curve([1.0, 2.0], [1.0, 0.0], [1, 20])(1.5) < 0.1


def test_gains_count_as_nothing_lost() -> None:
    assert fit_curve([1.0, 2.0], [-0.4, 1.0], [1, 1])(1.0) == 0


@pytest.mark.parametrize("points", [0.0, 0.2, 0.4, 0.7, 0.9, 3.0])
def test_the_largest_error_is_where_the_curve_reaches_the_points(points: float) -> None:
    curve = fit_curve([1.0, 2.0, 3.0, 4.0], [0.5, 0.3, 1.0, 0.8], [1, 1, 1, 1])
    largest = curve.largest(points)
    assert curve(largest) <= points + 1e-9
    assert curve(largest + 1.01) > points


def test_without_any_point_every_error_is_allowed() -> None:
    assert Curve((0.0,), (0.0,)).largest(0.1) == np.inf


def test_the_shape_comes_from_the_knobs_and_the_level_from_what_was_verified() -> None:
    knobs = [(error, error**2) for error in np.linspace(0.1, 2, 20)]
    curve = joint_curve(knobs, [(1.0, 2.0), (1.5, 4.5)])
    assert curve(0.5) == pytest.approx(0.5, abs=0.1)
    assert curve(1.9) == pytest.approx(7.2, rel=0.1)
    alone = joint_curve(knobs, [])
    assert alone(1.0) == pytest.approx(1.0, abs=0.1)

"""How long n rows take, learned: the line, a machine that slows down, and what equal batches do not unlearn."""

from __future__ import annotations

import math

import pytest

from edgekit.runtimes.server.pace import Pace


def taught(*runs: tuple[int, float]) -> Pace:
    pace = Pace()
    for rows, seconds in runs:
        pace.learn(rows, seconds)
    return pace


def test_nothing_known_promises_nothing_and_bounds_nothing() -> None:
    pace = Pace()
    assert not pace.is_known and pace.seconds(8) == 0
    assert pace.rows_within(0.001) > 1_000_000


def test_a_line_is_found_from_two_sizes() -> None:
    pace = taught(*[(1, 0.003), (16, 0.018)] * 5)
    assert pace.seconds(1) == pytest.approx(0.003, rel=1e-6)
    assert pace.seconds(8) == pytest.approx(0.010, rel=1e-6)
    assert pace.rows_within(0.0101) == 8
    assert pace.rows_within(1e-6) == 1


def test_a_machine_that_becomes_three_times_slower_is_believed_within_thirty_runs() -> None:
    pace = taught(*[(1, 0.003), (16, 0.018)] * 20)
    for _ in range(30):
        pace.learn(16, 0.054)
    assert pace.seconds(16) == pytest.approx(0.054, rel=0.1)
    assert pace.seconds(1) == pytest.approx(0.009, rel=0.25)


def test_a_hundred_equal_batches_do_not_unlearn_what_one_row_costs() -> None:
    pace = taught(*[(1, 0.003), (16, 0.018)] * 10, *[(16, 0.018)] * 100)
    assert pace.seconds(1) == pytest.approx(0.003, rel=0.05)


def test_one_outlier_moves_little() -> None:
    pace = taught(*[(1, 0.003), (16, 0.018)] * 20)
    pace.learn(1, 3.0)
    assert pace.seconds(16) < 0.03


def test_the_margin_grows_with_the_scatter_and_with_the_root_of_the_runs() -> None:
    calm, restless = taught(*[(4, 0.010)] * 60), taught(*[(4, 0.006), (4, 0.014)] * 30)
    assert calm.late_by(4) < 0.001 < restless.late_by(4)
    assert restless.late_by(4, 9) == pytest.approx(3 * restless.late_by(4))


def test_decreasing_times_never_give_a_negative_cost() -> None:
    pace = taught(*[(1, 0.02), (16, 0.01)] * 10)
    assert pace.per_row_s == 0 and pace.seconds(100) > 0
    assert math.isfinite(pace.seconds(100))

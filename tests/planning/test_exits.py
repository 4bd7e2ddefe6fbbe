from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import PlanError, UsageError
from edgekit.planning.exits import Allowance, Schedule, choose_thresholds, leaving, oracle, reach, schedule_for

RNG = np.random.default_rng(0)
COSTS = (1.0, 2.0, 3.5)


def samples(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Confidences that mean something: deeper exits are righter, the sure ones most."""
    sure = RNG.uniform(0.3, 1.0, (2, count))
    right = np.vstack([RNG.uniform(size=(2, count)) < sure, RNG.uniform(size=(1, count)) < 0.9])
    return sure, right


def test_a_sample_leaves_at_the_first_exit_that_is_sure() -> None:
    sure = np.array([[0.9, 0.2, 0.2], [0.1, 0.8, 0.3]])
    assert leaving(sure, (0.5, 0.5)).tolist() == [0, 1, 2]


def test_what_is_reached_is_what_a_loop_counts() -> None:
    sure, right = samples(50)
    left_at = leaving(sure, (0.7, 0.6))
    found = reach(left_at, right, COSTS)
    assert found.accuracy == pytest.approx(np.mean([right[exit, n] for n, exit in enumerate(left_at)]))
    assert found.cost == pytest.approx(np.mean([COSTS[exit] for exit in left_at]))
    assert sum(found.left) == pytest.approx(1)


def test_the_thresholds_are_the_cheapest_of_a_brute_force_within_the_limit() -> None:
    sure, right = samples()
    thresholds, found = choose_thresholds(sure, right, COSTS, 2.0)
    assert 100 * (right[-1].mean() - found.accuracy) <= 2.0 + 1e-6
    grid = np.linspace(0.3, 1.0, 15)
    for pair in itertools.product(grid, grid):
        other = reach(leaving(sure, pair), right, COSTS)
        if 100 * (right[-1].mean() - other.accuracy) <= 1.0:
            assert found.cost <= other.cost + 0.05
    assert reach(leaving(sure, thresholds), right, COSTS) == found


def test_nothing_leaves_where_every_early_answer_is_wrong() -> None:
    sure = RNG.uniform(0.3, 1.0, (1, 100))
    right = np.vstack([np.zeros((1, 100), bool), np.ones((1, 100), bool)])
    _, found = choose_thresholds(sure, right, (1.0, 2.0), 0.5)
    assert found.left == (0.0, 1.0)


def test_expected_losses_hold_back_what_lucky_labels_would_let_go() -> None:
    sure = np.linspace(0.3, 1.0, 200)[None]
    right = np.ones((2, 200), bool)
    expected = np.vstack([np.full(200, 0.8), np.full(200, 0.9)])
    free = choose_thresholds(sure, right, (1.0, 2.0), 2.0)[1]
    held = choose_thresholds(sure, right, (1.0, 2.0), 2.0, expected)[1]
    assert free.left[0] == 1.0 and held.left[0] <= 0.2


@pytest.mark.parametrize("shares", [(0.2, 0.5), (1.1,), (-0.1,)])
def test_a_schedule_that_rises_or_leaves_its_range_is_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="allowed 1 to 0"):
        Schedule(shares)


def test_the_least_sure_of_a_batch_go_on_and_no_more_than_allowed() -> None:
    goes = Schedule((0.5, 0.25)).going_on(np.array([0.9, 0.1, 0.5, 0.2]), 0, 4)
    assert goes.tolist() == [False, True, False, True]


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=4).map(lambda shares: tuple(sorted(shares, reverse=True))),
    st.integers(1, 40),
    st.integers(1, 200),
)
def test_no_order_of_requests_passes_more_than_the_schedule_of_a_window(shares, window: int, requests: int) -> None:
    """Each request wants to go all the way: the worst case."""
    allowance = Allowance(Schedule(shares, window))
    passed = np.zeros((requests, len(shares)), bool)
    for number in range(requests):
        left = allowance.enter()
        for exit in range(len(shares)):
            if not allowance.may_go_on(left, exit):
                break
            passed[number, exit] = True
    for start in range(0, requests, window):
        counted = passed[start : start + window].sum(0)
        assert all(n <= allowance.schedule.allowed(exit, window) for exit, n in enumerate(counted))
        assert list(counted) == sorted(counted, reverse=True)


def test_the_worst_cost_is_what_the_worst_window_costs() -> None:
    schedule = Schedule((0.5, 0.25), 8)
    allowance, spent = Allowance(schedule), 0.0
    for _ in range(8):
        left, depth = allowance.enter(), 0
        while depth < 2 and allowance.may_go_on(left, depth):
            depth += 1
        spent += COSTS[depth]
    assert spent / 8 == pytest.approx(schedule.worst(COSTS))


def test_what_is_allowed_never_rises_within_a_window() -> None:
    allowance = Allowance(Schedule((0.5,), 10))
    left, seen = allowance.enter(), []
    for _ in range(9):
        seen.append(left[0])
        allowance.may_go_on(left, 0)
        left = allowance.enter()
    assert seen == sorted(seen, reverse=True) and seen[-1] == 0


def test_threads_share_one_allowance() -> None:
    allowance, passed = Allowance(Schedule((0.25,), 400)), []

    def ask() -> None:
        for _ in range(100):
            passed.append(allowance.may_go_on(allowance.enter(), 0))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(passed) == 100


def test_a_budget_becomes_the_largest_shares_that_cost_it_at_worst() -> None:
    schedule = schedule_for((0.6, 0.3), COSTS, 1.8, window=1000)
    assert 1.79 < schedule.worst(COSTS) <= 1.8
    assert schedule.shares[0] == pytest.approx(2 * schedule.shares[1], rel=0.01)
    assert schedule_for((0.6, 0.3), COSTS, 10.0).shares == (1.0, 1.0)


def test_a_budget_below_the_first_exit_names_the_nearest() -> None:
    with pytest.raises(PlanError, match="the first exit takes 1") as refused:
        schedule_for((0.6, 0.3), COSTS, 0.5)
    assert "1 is the nearest" in refused.value.hint


def test_the_oracle_takes_the_cheapest_that_is_right_for_each_input() -> None:
    right = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]], bool)
    found = oracle(right, (3.0, 1.0, 2.0))
    assert found.accuracy == 0.75
    assert found.cost == pytest.approx((1.0 + 1.0 + 2.0 + 1.0) / 4)  # none is right for the last: the cheapest


def test_no_thresholds_beat_the_oracle() -> None:
    sure, right = samples()
    bound = oracle(right, COSTS)
    for thresholds in itertools.product((0.0, 0.5, 0.7, 0.9, 1.1), repeat=2):
        assert reach(leaving(sure, thresholds), right, COSTS).accuracy <= bound.accuracy

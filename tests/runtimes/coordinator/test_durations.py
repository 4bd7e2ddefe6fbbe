from __future__ import annotations

import math

import pytest

from edgekit.runtimes.coordinator.durations import Durations


def test_until_something_was_measured_the_expectation_stands() -> None:
    assert Durations(12.0).p95_ms == 12.0


@pytest.mark.parametrize("count", [1, 2, 3, 20, 64])
def test_p95_is_a_duration_that_was_seen_and_few_exceed(count: int) -> None:
    durations = Durations()
    for value in range(count):
        durations.add(float(value))
    assert durations.p95_ms in range(count)
    assert sum(value > durations.p95_ms for value in range(count)) <= math.floor(0.05 * count)
    assert abs(durations.median_ms - (count - 1) / 2) <= 0.5


def test_old_durations_are_forgotten() -> None:
    durations = Durations(window=4)
    for value in (100.0, 1.0, 1.0, 1.0, 1.0):
        durations.add(value)
    assert durations.p95_ms == 1.0

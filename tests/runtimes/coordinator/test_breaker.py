from __future__ import annotations

import random

import pytest

from edgekit.errors import UsageError
from edgekit.runtimes.coordinator.breaker import BreakerSettings, CircuitBreaker

STILL = BreakerSettings(failures=3, first_s=1.0, longest_s=8.0, jitter=0.0)


def opened(clock, settings: BreakerSettings = STILL) -> CircuitBreaker:
    breaker = CircuitBreaker(clock, settings)
    for _ in range(settings.failures):
        breaker.failure()
    return breaker


def test_it_opens_after_failures_in_a_row_and_not_before(clock) -> None:
    breaker = CircuitBreaker(clock, STILL)
    for _ in range(2):
        breaker.failure()
    breaker.success()
    for _ in range(2):
        breaker.failure()
    assert breaker.state == "closed" and breaker.allow()
    breaker.failure()
    assert breaker.state == "open" and not breaker.allow()


def test_after_the_pause_exactly_one_may_try(clock) -> None:
    breaker = opened(clock)
    clock.advance(1.0)
    assert breaker.state == "half-open"
    assert [breaker.allow() for _ in range(3)] == [True, False, False]


def test_a_trial_that_succeeds_closes_it(clock) -> None:
    breaker = opened(clock)
    clock.advance(1.0)
    breaker.allow()
    breaker.success()
    assert breaker.state == "closed"
    assert all(breaker.allow() for _ in range(3))


def test_each_failed_trial_doubles_the_pause_up_to_the_longest(clock) -> None:
    breaker, pauses = opened(clock), []
    for _ in range(6):
        pauses.append(breaker.retry_in_s)
        clock.advance(breaker.retry_in_s)
        assert breaker.allow()
        breaker.failure()
    assert pauses == [1, 2, 4, 8, 8, 8]


def test_success_forgets_the_long_pauses(clock) -> None:
    breaker = opened(clock)
    clock.advance(1)
    breaker.allow()
    breaker.failure()
    clock.advance(2)
    breaker.allow()
    breaker.success()
    for _ in range(3):
        breaker.failure()
    assert breaker.retry_in_s == 1


def test_failures_of_requests_from_before_it_opened_do_not_lengthen_the_pause(clock) -> None:
    breaker = opened(clock)
    for _ in range(5):
        breaker.failure()
    assert breaker.retry_in_s == 1


def test_a_trial_of_which_nothing_is_heard_does_not_block_for_ever(clock) -> None:
    breaker = opened(clock)
    clock.advance(1)
    assert breaker.allow()
    clock.advance(8)
    assert breaker.allow()


def test_a_trial_that_was_not_sent_leaves_room_for_another(clock) -> None:
    breaker = opened(clock)
    clock.advance(1)
    assert breaker.allow()
    breaker.release()
    assert breaker.allow()


def test_jitter_takes_off_no_more_than_its_share(clock) -> None:
    pauses = set()
    for seed in range(50):
        breaker = CircuitBreaker(clock, BreakerSettings(1, 1.0, 8.0, jitter=0.5), rng=random.Random(seed))
        breaker.failure()
        pauses.add(breaker.retry_in_s)
    assert 0.5 <= min(pauses) < 0.6 and 0.9 < max(pauses) <= 1.0


@pytest.mark.parametrize(
    "settings", [{"failures": 0}, {"first_s": 0.0}, {"first_s": 9.0, "longest_s": 8.0}, {"jitter": 1.0}]
)
def test_settings_that_cannot_be_are_usage_errors(settings) -> None:
    with pytest.raises(UsageError):
        BreakerSettings(**settings)

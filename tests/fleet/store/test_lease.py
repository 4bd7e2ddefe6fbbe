"""One at a time, and the next when the holder is gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgekit.fleet.store import Database
from edgekit.fleet.store.lease import Lease
from tests.fleet.conftest import SettableClock

VALID_S = 0.5


@pytest.fixture
def pass_by(database: Database, clock: SettableClock) -> Callable[[float], None]:
    """Lets time go by where the database takes it from."""

    def pass_by(seconds: float) -> None:
        clock.advance(seconds)
        if not database.is_sqlite:
            time.sleep(seconds)

    return pass_by


def test_one_holds_it_until_its_time_is_over(
    database: Database, clock: SettableClock, pass_by: Callable[[float], None]
) -> None:
    first, second = (Lease(database, "leader", valid_s=VALID_S, now=clock) for _ in range(2))
    assert first.take() and not second.take() and first.take()
    pass_by(VALID_S * 1.1)
    assert second.take() and not first.take()


def test_taking_it_again_prolongs_it(
    database: Database, clock: SettableClock, pass_by: Callable[[float], None]
) -> None:
    first, second = (Lease(database, "leader", valid_s=10.0, now=clock) for _ in range(2))
    assert first.take()
    for _ in range(3):
        pass_by(0.01)
        if database.is_sqlite:
            clock.advance(6.0)
        assert first.take() and not second.take()


def test_who_leaves_hands_it_on_at_once(database: Database, clock: SettableClock) -> None:
    first, second = (Lease(database, "leader", now=clock) for _ in range(2))
    assert first.take() and not second.take()
    second.leave()  # it does not have it: nothing changes
    assert not second.take()
    first.leave()
    assert second.take() and not first.take()


def test_leases_of_other_names_are_others(database: Database, clock: SettableClock) -> None:
    assert Lease(database, "leader", now=clock).take() and Lease(database, "other", now=clock).take()


def test_many_that_ask_at_once_leave_one(database: Database, clock: SettableClock) -> None:
    leases = [Lease(database, "leader", now=clock) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(Lease.take, leases)) == 1

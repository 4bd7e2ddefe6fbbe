from __future__ import annotations

from collections import Counter

import pytest

from edgekit.runtimes.server.joining import Joining
from edgekit.runtimes.server.schedule import Tenant


def serve(joining: Joining[tuple[str, int]], slots: int, steps: int) -> Counter[str]:
    """Runs `slots` at once; how many steps each tenant got."""
    running: list[list] = []
    got: Counter[str] = Counter()
    for _ in range(steps):
        while len(running) < slots and (item := joining.pop()) is not None:
            running.append([*item])
        for entry in list(running):
            joining.charge(entry[0])
            got[entry[0]] += 1
            entry[1] -= 1
            if not entry[1]:
                running.remove(entry)
                joining.left(entry[0])
    return got


def test_a_tenant_of_long_answers_gets_no_more_steps_than_one_of_short_ones() -> None:
    joining: Joining[tuple[str, int]] = Joining()
    for _ in range(400):
        joining.push("long", ("long", 50))
        joining.push("short", ("short", 2))
    got = serve(joining, slots=4, steps=150)
    # One request at most is owed: whoever joins last keeps its slot to its end.
    assert abs(got["long"] - got["short"]) <= 4 * 50


def test_steps_follow_the_shares() -> None:
    joining: Joining[tuple[str, int]] = Joining([Tenant("a", share=3.0), Tenant("b", share=1.0)])
    for _ in range(600):
        joining.push("a", ("a", 4))
        joining.push("b", ("b", 4))
    got = serve(joining, slots=4, steps=500)
    assert got["a"] / got["b"] == pytest.approx(3.0, rel=0.05)


def test_first_come_first_served_within_a_tenant() -> None:
    joining: Joining[int] = Joining()
    for number in range(5):
        joining.push("a", number)
    assert [joining.pop() for _ in range(6)] == [0, 1, 2, 3, 4, None]


def test_who_was_away_brings_no_credit_along() -> None:
    joining: Joining[tuple[str, int]] = Joining()
    for _ in range(100):
        joining.push("steady", ("steady", 1))
    serve(joining, slots=1, steps=50)
    for _ in range(100):
        joining.push("late", ("late", 1))
    got = serve(joining, slots=1, steps=40)
    assert abs(got["late"] - got["steady"]) <= 1


def test_dropped_ones_are_gone_and_nobody_is_remembered() -> None:
    joining: Joining[int] = Joining()
    for number in range(6):
        joining.push("a" if number % 2 else "b", number)
    assert sorted(joining.drop(lambda number: number in (1, 2, 3))) == [1, 2, 3]
    assert len(joining) == 3
    assert joining.drop(lambda number: True)
    assert len(joining) == 0
    assert not joining._steps

from __future__ import annotations

import pytest

from edgekit.tuning.halving import halve, rung_sizes


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [2]), (3, [3, 2]), (8, [8, 4, 2]), (21, [21, 11, 6, 3, 2])])
def test_each_rung_keeps_the_better_half(count: int, sizes: list[int]) -> None:
    assert rung_sizes(count) == sizes


def test_the_best_is_found_and_gets_the_most_time() -> None:
    spent: dict[int, float] = {}

    def evaluate(candidate: int, seconds: float) -> float:
        spent[candidate] = spent.get(candidate, 0.0) + seconds
        return -abs(candidate - 11)

    rungs = list(halve(range(16), evaluate, lambda value: (value,), 1.0))
    assert rungs[-1].found[0] == (11, 0)
    assert [rung.seconds for rung in rungs] == [1, 2, 4, 8]
    assert spent[11] == 15 and spent[0] == 1
    # Each rung costs the same in all.
    assert [rung.seconds * len(rung.found) for rung in rungs] == [16, 16, 16, 16]


def test_a_bad_first_impression_can_cost_the_best_its_place_only_below_the_middle() -> None:
    noise = {(3, 1.0): -0.5}
    rungs = list(
        halve(range(4), lambda candidate, seconds: candidate + noise.get((candidate, seconds), 0), lambda v: (v,), 1.0)
    )
    assert rungs[-1].found[0][0] == 3


def test_equals_stay_in_their_order() -> None:
    rungs = list(halve("abcd", lambda candidate, seconds: 0, lambda value: (value,), 1.0))
    assert [candidate for candidate, _ in rungs[-1].found] == ["a", "b"]

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.passes.tokens.schedule import Shape, by_mass, even, for_share, limited, tokens_for_mass

SHAPE = Shape(tokens=50, protected=1, width=64, attention=((64, 64),) * 6, feed_forward=(128,) * 6)


def test_flops_are_those_of_the_products() -> None:
    one = Shape(tokens=10, protected=1, width=8, attention=((8, 8),), feed_forward=(32,))
    projections, attention, feed_forward = 4 * 2 * 10 * 8 * 8, 2 * 2 * 10 * 10 * 8, 2 * 2 * 10 * 8 * 32
    assert one.flops() == projections + attention + feed_forward
    assert one.flops([5]) == projections + attention + feed_forward / 2


@pytest.mark.parametrize("keep", [(50,) * 5, (51,) * 6, (40, 30, 31, 20, 10, 5), (10, 5, 4, 3, 2, 1), (0,) * 6])
def test_schedules_that_cannot_be_are_refused(keep: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="allowed"):
        SHAPE.check(keep)


def test_even_schedules_fall_by_one_number_to_the_last_token() -> None:
    assert even(SHAPE, 5) == (45, 40, 35, 30, 25, 20)
    assert even(SHAPE, 5, first=2) == (50, 50, 45, 40, 35, 30)
    assert even(SHAPE, 25)[-1] == 2


def test_as_many_tokens_as_hold_the_mass() -> None:
    received = np.array([[0.9, 0.5, 0.3, 0.1, 0.1], [0.9, 0.25, 0.25, 0.25, 0.25]])
    assert tokens_for_mass(received, 0.8, 1).tolist() == [3, 5]
    assert tokens_for_mass(received, 0.45, 1).tolist() == [2, 3]
    assert tokens_for_mass(received, 1.0, 1).max() <= 5


def test_a_schedule_by_mass_never_grows() -> None:
    assert by_mass(SHAPE, np.array([[30, 40, 20, 25, 10, 1], [32, 40, 22, 25, 10, 1]])) == (31, 31, 21, 21, 10, 2)


def test_a_step_leaves_the_share_that_a_reducer_needs() -> None:
    assert limited(SHAPE, (10, 10, 10, 10, 10, 10), 0.5, 1) == (26, 14, 10, 10, 10, 10)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_the_schedule_for_a_share_is_just_below_it(share: float) -> None:
    keep = for_share(SHAPE, share, lambda removed: even(SHAPE, removed), 0.0, 50.0)
    SHAPE.check(keep)
    assert share - 0.03 < SHAPE.flops(keep) / SHAPE.flops() <= share


def test_a_share_out_of_reach_says_what_is_within() -> None:
    with pytest.raises(UsageError, match="at least"):
        for_share(SHAPE, 0.01, lambda removed: even(SHAPE, removed), 0.0, 50.0)


def test_where_no_token_can_be_taken_that_is_said() -> None:
    alone = Shape(tokens=1, protected=1, width=8, attention=((8, 8),) * 2, feed_forward=(16,) * 2)
    with pytest.raises(UsageError, match="no token can be taken: there are 1, and 1 of them stay"):
        for_share(alone, 0.7, lambda removed: even(alone, removed), 0.0, 50.0)

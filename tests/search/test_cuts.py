"""Which recipe is cut, and which cut is taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.errors import PlanError
from edgekit.report.model import SplitRow
from edgekit.search.cuts import MOST_CUT, cut_jointly
from edgekit.search.limits import SearchLimits
from edgekit.split_outcome import SplitOutcome

RECIPES: list[Any] = [SimpleNamespace(name=name) for name in "abcd"]
# (bytes, points) by recipe at two rates
RATES = {"a": ((900.0, 0.1), (400.0, 0.9)), "b": ((700.0, 0.1), (200.0, 0.4)), "c": ((90.0, 3.0),), "d": ((1.0, 0.0),)}


def cut(one: Any) -> SplitOutcome:
    rows = [
        SplitRow(variant=f"split-{one.name}", codec="feature", rate=rate, bytes_mean=size, bytes_p95=size, drop=drop)
        for rate, (size, drop) in enumerate(RATES[one.name])
    ]
    return SplitOutcome(rows=tuple(rows))


def refuse(one: Any) -> SplitOutcome:
    if one.name == "a":
        raise PlanError("a cannot be cut", binding="max_drop")
    return cut(one)


def test_without_a_limit_on_bytes_the_best_recipe_is_cut() -> None:
    assert cut_jointly(RECIPES, cut, SearchLimits(drop=1.0))[0].name == "a"  # type: ignore[attr-defined]


def test_the_recipe_that_sends_least_within_the_drop_is_taken() -> None:
    best, outcome = cut_jointly(RECIPES, cut, SearchLimits(bytes_sent=500.0, drop=1.0))
    assert best.name == "b"  # type: ignore[attr-defined]
    assert outcome.rows[0].variant == "split-b"


def test_recipes_that_cannot_be_cut_are_passed_over() -> None:
    assert cut_jointly(RECIPES, refuse, SearchLimits(bytes_sent=500.0, drop=0.5))[0].name == "b"  # type: ignore[attr-defined]


def test_a_limit_that_no_cut_meets_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"nearest, split-b at rate 1, sends 200 and loses 0\.40") as caught:
        cut_jointly(RECIPES, cut, SearchLimits(bytes_sent=100.0, drop=1.0))
    assert caught.value.binding == "bytes_sent"


def test_where_none_can_be_cut_the_first_reason_is_told() -> None:
    with pytest.raises(PlanError, match="a cannot be cut"):
        cut_jointly(RECIPES[:1], refuse, SearchLimits(bytes_sent=100.0, drop=1.0))
    assert MOST_CUT == 3

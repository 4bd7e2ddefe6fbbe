"""Limits and budgets as users write them."""

from __future__ import annotations

import pytest

from edgekit.errors import UnknownNameError, UsageError
from edgekit.search.limits import SearchLimits, parse_budget


def test_limits_are_read_in_their_units() -> None:
    found = SearchLimits.parse("latency=8ms, size=10MB,energy=0.2J,bytes=2kB,memory=1MiB,drop=0.5", 1.0)
    assert found == SearchLimits(8.0, 1e7, 2.0**20, 2e3, 200.0, 0.5)
    assert SearchLimits.parse("latency=0.5s", 1.0).latency_ms == 500
    assert SearchLimits.parse("accuracy=0.3", 1.0).drop == 0.3


def test_the_smaller_of_two_drops_holds() -> None:
    assert SearchLimits.parse(None, 0.5) == SearchLimits(drop=0.5)
    assert SearchLimits.parse("drop=2", 0.5).drop == 0.5
    assert SearchLimits.parse("drop=0", 0.5).drop == 0


@pytest.mark.parametrize(
    "text",
    ["latency=", "latency", "latency=0ms", "latency=8MB", "size=-1", "size=10", "bytes=900", "energy=x", "drop=-1"],
)
def test_what_is_no_quantity_is_told_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="quantity above zero") as caught:
        SearchLimits.parse(text, 1.0)
    assert "latency=8ms" in caught.value.hint


def test_unknown_limits_are_told_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="latncy"):
        SearchLimits.parse("latncy=8ms", 1.0)


def test_a_limit_given_twice_is_told() -> None:
    with pytest.raises(UsageError, match="second"):
        SearchLimits.parse("latency=8ms,latency=9ms", 1.0)


def test_broken_limits_are_named_and_their_excess_added() -> None:
    limits = SearchLimits(latency_ms=10.0, size_bytes=100.0, drop=1.0)
    fine: dict[str, float | None] = {"latency_ms": 10.0, "size_bytes": 50.0, "drop": -0.2, "energy_mj": None}
    assert limits.broken(fine) == []
    assert limits.excess(fine) == 0
    worse = {**fine, "latency_ms": 15.0, "drop": 1.5}
    assert limits.broken(worse) == ["latency_ms", "drop"]
    assert limits.excess(worse) == pytest.approx(1.0)


def test_budgets_are_read_in_their_units() -> None:
    assert [parse_budget(text) for text in ("90s", "20min", "1h", "1.5m")] == [90, 1200, 3600, 90]


@pytest.mark.parametrize("text", ["", "20", "min", "0s", "-5s", "20 weeks"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="no time above zero"):
        parse_budget(text)

"""Links and speeds from windows: medians, quartiles, and what the network's share leaves of a latency."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.telemetry.links import LEAST_WINDOWS, Sighting, compute_scale, link_span, quantile
from edgekit.planning.plan import StageCost, Way

WHOLE = Way("whole", (StageCost("main", "device", 30.0),))
AWAY = Way("away", (StageCost("head", "device", 1.0), StageCost("tail", "edge", 2.0)))


def linked(*links: tuple[float, float, float] | None) -> list[Sighting]:
    return [Sighting(100.0 + index, link, "whole", 30.0, 10) for index, link in enumerate(links)]


def timed(*latencies: float, variant: str = "whole") -> list[Sighting]:
    return [Sighting(float(index), None, variant, ms, 10) for index, ms in enumerate(latencies)]


def test_medians_and_the_worse_quartile_of_each() -> None:
    span = link_span(linked((10, 20, 0.0), (20, 30, 0.1), (30, 40, 0.0), (40, 50, 0.2), None))
    assert span is not None
    assert (span.usual.bandwidth_mbps, span.usual.rtt_ms, span.usual.loss) == (25, 35, 0.05)
    assert (span.slow.bandwidth_mbps, span.slow.rtt_ms, span.slow.loss) == (10, 40, 0.1)
    assert (span.windows, span.since, span.until) == (4, 100.0, 103.0)


def test_few_windows_tell_nothing_of_a_link() -> None:
    assert link_span(linked(*[(10.0, 20.0, 0.0)] * (LEAST_WINDOWS - 1))) is None
    assert link_span(linked(None, None, None, None)) is None


def test_a_link_that_loses_everything_is_still_a_link() -> None:
    span = link_span(linked(*[(10.0, 20.0, 1.0)] * 4))
    assert span is not None and span.usual.loss < 1


def test_a_device_that_takes_twice_as_long_is_twice_as_slow() -> None:
    assert compute_scale(timed(60, 61, 59, 600), [WHOLE], lambda way: 0.0)[:2] == (pytest.approx(2.0, rel=0.02), 40)


def test_the_networks_share_is_taken_off_first() -> None:
    scale, _, measured = compute_scale(timed(70, 70, 70), [WHOLE], lambda way: 10.0)
    assert scale == pytest.approx(2.0) and measured == 70


def test_a_way_that_hardly_computes_here_says_nothing() -> None:
    assert compute_scale(timed(50, 50, 50, variant="away"), [AWAY], lambda way: 40.0) == (1.0, 0, 50)


def test_unknown_plans_and_empty_windows_say_nothing() -> None:
    scale, answers, measured = compute_scale([*timed(5, variant="gone"), *timed(math.nan)], [WHOLE], lambda way: 0.0)
    assert (scale, answers) == (1.0, 0) and math.isnan(measured)


@given(st.lists(st.floats(0, 1e6), max_size=20))
def test_a_scale_is_always_one_that_can_be(latencies: list[float]) -> None:
    scale, _, _ = compute_scale(timed(*latencies), [WHOLE], lambda way: 5.0)
    assert 0.2 <= scale <= 20


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_is_one_of_the_values_with_its_share_below(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6

"""Windows that fade: what counts how much, and that it survives being stored."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.protocol.windows import Health, LinkSeen, Window
from edgekit.fleet.telemetry.fading import Faded, weighted_percentile
from edgekit.fleet.telemetry.histogram import histogram_of, middle, percentile


def window(at: float, answered: int = 10, **more: object) -> Window:
    fields = {"sequence": 0, "started_at": at, "seconds": 30.0, "digest": "a" * 64, "answered": answered}
    return Window.model_validate({**fields, **more})


def test_a_half_life_later_it_counts_half() -> None:
    found = Faded().add([window(0, latency={4: 10}), window(600, latency={8: 10})], half_life_s=600)
    assert found.answered == pytest.approx(15)
    assert found.latency == pytest.approx({4: 5, 8: 10})


def test_one_that_comes_late_counts_as_what_it_is() -> None:
    in_order = Faded().add([window(0, 7), window(600, 10)], half_life_s=600)
    late = Faded().add([window(600, 10), window(0, 7)], half_life_s=600)
    assert late.answered == pytest.approx(in_order.answered) and late.at == 600


def test_without_a_half_life_nothing_fades() -> None:
    found = Faded().add([window(0), window(1e6)])
    assert found.answered == 20 and found.seconds == 60


def test_buckets_that_hardly_count_are_forgotten() -> None:
    found = Faded().add([window(0, latency={4: 1}), window(20 * 600, latency={8: 1})], half_life_s=600)
    assert set(found.latency) == {8}


def test_samples_of_the_same_second_are_one() -> None:
    assert Faded().add([window(0, answered=900)]).heard_s == 30
    assert Faded().add([window(0, answered=4)]).heard_s == 4


def test_links_are_averaged_as_factors() -> None:
    links = [LinkSeen(bandwidth_mbps=mbps, rtt_ms=20.0, loss=0.01) for mbps in (1.0, 100.0)]
    found = Faded().add(window(0, link=link) for link in links)
    assert (found.bandwidth_mbps, found.rtt_ms, found.loss) == pytest.approx((10.0, 20.0, 0.01))
    assert math.isnan(Faded().bandwidth_mbps) and math.isnan(Faded().temperature_c)
    assert Faded().add([window(0, health=Health(temperature_c=61.0))]).temperature_c == 61.0


def test_the_plan_is_the_one_of_most_of_the_time() -> None:
    found = Faded().add([window(0, plan="split"), window(30, plan="whole"), window(60, plan="whole")])
    assert found.plan == "whole"
    assert Faded().plan == ""


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 1000)), max_size=20))
def test_it_survives_being_stored(parts: list[tuple[float, int]]) -> None:
    found = Faded().add((window(at, count, latency={-3: count, 40: 1}, plan="p") for at, count in parts), 600)
    assert Faded.read(json.loads(json.dumps(found.stored()))) == found


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=200), st.sampled_from((0.1, 0.5, 0.95, 1.0)))
def test_weighted_percentiles_are_the_plain_ones_of_counts(values: list[float], share: float) -> None:
    histogram = histogram_of(values)
    assert weighted_percentile(histogram, share) == percentile(histogram, share)


def test_the_percentile_of_nothing_is_nan() -> None:
    assert math.isnan(weighted_percentile({}, 0.5))
    assert weighted_percentile({3: 1.0}, 0.0) == middle(3)

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.planning.estimate import LinkEstimate
from edgekit.planning.link import Link

STEP_S = 0.1


def _took_ms(link: Link, size_bytes: float) -> float:
    return link.rtt_ms + link.transfer_ms(size_bytes)


def _feed(
    estimate: LinkEstimate, link: Link, sizes: list[float], count: int, start_s: float = 0.0, jitter: float = 0.0
) -> float:
    """`count` transfers over `link`, sizes in turns; gives the time after them."""
    rng = np.random.default_rng(0)
    for index in range(count):
        size_bytes = sizes[index % len(sizes)]
        noise = float(rng.lognormal(0, jitter)) if jitter else 1.0
        estimate.observe(size_bytes, noise * _took_ms(link, size_bytes), start_s + index * STEP_S)
    return start_s + count * STEP_S


@pytest.mark.parametrize("link", [Link(1, 60), Link(10, 20), Link(100, 5), Link(500, 1)])
def test_small_and_large_transfers_tell_round_trip_and_bandwidth_apart(link: Link) -> None:
    estimate = LinkEstimate(Link(10, 20))
    _feed(estimate, link, [200, 20_000, 150_000], 90, jitter=0.03)
    assert estimate.link.rtt_ms == pytest.approx(link.rtt_ms, rel=0.15)
    assert estimate.link.bandwidth_mbps == pytest.approx(link.bandwidth_mbps, rel=0.15)


def test_transfers_of_one_size_predict_that_size() -> None:
    estimate, link = LinkEstimate(Link(10, 20)), Link(3, 45)
    _feed(estimate, link, [3_000], 30)
    assert _took_ms(estimate.link, 3_000) == pytest.approx(_took_ms(link, 3_000), rel=0.05)


def test_a_collapse_is_believed_at_once_and_a_recovery_by_and_by() -> None:
    good, bad = Link(20, 20), Link(1, 20)
    estimate = LinkEstimate(good)
    now_s = _feed(estimate, good, [500, 20_000], 40)
    now_s = _feed(estimate, bad, [20_000], 1, now_s)
    assert _took_ms(estimate.link, 20_000) > 0.9 * _took_ms(bad, 20_000)
    now_s = _feed(estimate, bad, [500, 20_000], 40, now_s)
    now_s = _feed(estimate, good, [20_000], 1, now_s)
    assert _took_ms(estimate.link, 20_000) > 0.6 * _took_ms(bad, 20_000)
    _feed(estimate, good, [500, 20_000], 40, now_s)
    assert _took_ms(estimate.link, 20_000) == pytest.approx(_took_ms(good, 20_000), rel=0.1)


def test_a_collapse_seen_in_large_transfers_is_one_of_bandwidth() -> None:
    estimate = LinkEstimate(Link(10, 5))
    now_s = _feed(estimate, Link(10, 5), [500, 50_000], 40)
    _feed(estimate, Link(1, 5), [50_000], 2, now_s)
    assert estimate.link.bandwidth_mbps == pytest.approx(1.0, rel=0.2)


def test_jitter_widens_the_spread_and_biases_the_estimate_little() -> None:
    """What is late is believed faster than what is early: with a fifth of jitter that costs a tenth or so."""
    link, calm, rough = Link(10, 20), LinkEstimate(Link(10, 20)), LinkEstimate(Link(10, 20))
    rng, now_s, spreads, expected = np.random.default_rng(0), 0.0, [], []
    for index in range(400):
        size_bytes, now_s = (500, 20_000)[index % 2], index * STEP_S
        calm.observe(size_bytes, float(rng.lognormal(0, 0.02)) * _took_ms(link, size_bytes), now_s)
        rough.observe(size_bytes, float(rng.lognormal(0, 0.2)) * _took_ms(link, size_bytes), now_s)
        spreads.append(rough.spread_ms(20_000, now_s) / calm.spread_ms(20_000, now_s))
        expected.append(_took_ms(rough.link, 20_000))
    assert np.median(spreads[50:]) > 2
    assert np.median(expected[50:]) == pytest.approx(_took_ms(link, 20_000), rel=0.15)


def test_silence_lowers_confidence_and_widens_the_spread() -> None:
    estimate = LinkEstimate(Link(10, 20), half_life_s=4.0)
    assert estimate.confidence(0.0) == 0
    now_s = _feed(estimate, Link(10, 20), [500, 20_000], 20) - STEP_S
    assert estimate.confidence(now_s) == 1
    assert estimate.confidence(now_s + 4.0) == pytest.approx(0.5)
    assert not estimate.wants_probe(now_s + 3.9)
    assert estimate.wants_probe(now_s + 4.1)
    assert estimate.spread_ms(20_000, now_s + 4) > estimate.spread_ms(20_000, now_s)


def test_an_answer_that_does_not_come_counts_once_it_is_late() -> None:
    estimate = LinkEstimate(Link(10, 20))
    now_s = _feed(estimate, Link(10, 20), [500, 20_000], 20)
    before = estimate.link
    estimate.observe(20_000, 10.0, now_s, unfinished=True)
    assert estimate.link == before
    assert not estimate.is_down(now_s)
    estimate.observe(20_000, 500.0, now_s + 0.5, unfinished=True)
    assert _took_ms(estimate.link, 20_000) > 300
    assert estimate.is_down(now_s + 0.5)


def test_after_an_outage_an_answer_as_fast_as_ever_brings_the_link_back() -> None:
    link = Link(10, 20)
    estimate = LinkEstimate(link)
    now_s = _feed(estimate, link, [500, 20_000], 20)
    estimate.observe(20_000, 500.0, now_s + 0.5, unfinished=True)
    estimate.observe(500, _took_ms(link, 500), now_s + 2)
    assert not estimate.is_down(now_s + 2)
    assert _took_ms(estimate.link, 20_000) == pytest.approx(_took_ms(link, 20_000), rel=0.1)


def test_the_estimate_stays_possible_whatever_is_seen() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        estimate, now_s = LinkEstimate(Link(float(rng.uniform(0.1, 500)), float(rng.uniform(0, 200)))), 0.0
        for _ in range(200):
            size_bytes = float(rng.choice([0, 1, 1e2, 1e4, 1e7]))
            took_ms = float(10 ** rng.uniform(-3, 5))
            estimate.observe(size_bytes, took_ms, now_s, unfinished=bool(rng.random() < 0.2))
            now_s += float(rng.exponential(1.0))
            assert 0 < estimate.link.bandwidth_mbps < math.inf
            assert 0 < estimate.link.rtt_ms < math.inf
            assert 0 <= estimate.spread_ms(1e4, now_s) < math.inf


@pytest.mark.parametrize(("size_bytes", "took_ms"), [(-1, 1), (1, -1), (1, math.nan), (math.inf, 1)])
def test_impossible_transfers_are_refused(size_bytes: float, took_ms: float) -> None:
    with pytest.raises(UsageError, match="allowed"):
        LinkEstimate(Link(1)).observe(size_bytes, took_ms, 0.0)

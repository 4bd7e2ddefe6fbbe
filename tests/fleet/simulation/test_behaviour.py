"""What simulated devices measure: repeatable, and as they are told."""

from __future__ import annotations

import pytest

from edgekit.fleet.simulation.behaviour import SLOWER, WRONG_AGREEMENT, Behaviour, Fault, Senses
from edgekit.fleet.telemetry.histogram import percentile
from edgekit.fleet.telemetry.seen import Seen

DIGEST = "a" * 64


def watched(fault: Fault | None = None, windows: int = 40, **others: float) -> Seen:
    senses = Senses(Behaviour(rate=20.0, compared=0.5, **others), seed=3)
    return Seen.of(senses.window(number, 30.0 * number, 30.0, DIGEST, fault) for number in range(windows))


def test_the_same_seed_gives_the_same_windows_and_another_one_others() -> None:
    first, second, other = (Senses(Behaviour(), seed).window(0, 0.0, 30.0, DIGEST, None) for seed in (1, 1, 2))
    assert first == second != other


def test_shares_and_latencies_come_out_as_they_were_asked_for() -> None:
    seen = watched(errors=0.02, agreement=0.9, latency_ms=40.0)
    assert seen.requests == pytest.approx(40 * 600, rel=0.05)
    assert seen.share(seen.errors) == pytest.approx(0.02, abs=0.01)
    assert seen.agreement == pytest.approx(0.9, abs=0.02)
    assert sum(seen.latency.values()) == sum(seen.confidence.values()) == seen.answered
    assert 40 * 0.6 < seen.latency_ms(0.5) < 40 * 1.7  # a device's own median lies around the fleet's


def test_each_fault_shows_in_its_own_metric_alone() -> None:
    well, wrong, slow = watched(), watched("wrong"), watched("slow")
    assert wrong.agreement == pytest.approx(WRONG_AGREEMENT, abs=0.03)
    assert wrong.latency_ms(0.5) == well.latency_ms(0.5)
    assert slow.latency_ms(0.5) == pytest.approx(SLOWER * well.latency_ms(0.5), rel=0.2)
    assert slow.agreement == pytest.approx(well.agreement, abs=0.02)


def test_inputs_drift_with_time() -> None:
    senses = Senses(Behaviour(rate=20.0, drift=1.0), seed=3)
    young, old = (senses.window(0, 0.0, 300.0, DIGEST, None, age_s=age) for age in (0.0, 3600.0))
    assert percentile(old.inputs, 0.5) == pytest.approx(2 * percentile(young.inputs, 0.5), rel=0.2)

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edgekit.bundle import Bundle
from edgekit.capacity.demand import Arrivals, Objective
from edgekit.capacity.replica import Crossing, Overhead, Replica, fitting_workers, worker_bytes
from edgekit.capacity.service import Service
from edgekit.capacity.simulation import Simulation
from edgekit.capacity.sizing import Estimate, _fewest, nearest_above, size
from edgekit.errors import PlanError
from edgekit.planning.link import Link
from edgekit.runtimes.server.schedule import BatchOptions

LINE = Service(0.004, 0.002)
REPLICA = Replica(LINE, BatchOptions(8, 0.0, 1000))
ARRIVALS = Arrivals.poisson(6000)


@pytest.mark.parametrize("least", [1, 5, 100])
@pytest.mark.parametrize("answer", [1, 2, 7, 99, 100, 101, 1000])
@pytest.mark.parametrize("first", [1, 6, 90, 2000])
def test_the_fewest_is_found_from_wherever_it_begins(least: int, answer: int, first: int) -> None:
    asked = []

    def holds(count: int) -> bool:
        asked.append(count)
        return count >= answer

    assert _fewest(holds, least, max(least, first)) == max(least, answer)
    assert min(asked) >= least


def test_replicas_hold_the_objective_with_their_margin_and_fewer_do_not() -> None:
    objective = Objective(0.95, 40.0)
    found = size(REPLICA, 2000.0, objective, ARRIVALS)
    assert found.latency_ms < found.estimate.at_most_ms <= 40.0 < found.fewer.percentile_ms
    assert found.fewer_replicas == found.replicas - 1
    assert found.each_hz * found.replicas == pytest.approx(2000)
    assert found.disagreement is not None and abs(found.disagreement) < 0.2


def test_courses_that_the_search_did_not_see_hold_the_objective_too() -> None:
    """A search by one course alone keeps the count at which that one was lucky: half of the others then break it."""
    objective = Objective(0.99, 60.0)
    found = size(REPLICA, 40_000.0, objective, ARRIVALS)
    fresh = [
        Simulation(REPLICA, seed=seed).run(ARRIVALS.again(seed).at(found.each_hz)).percentile_ms(objective)
        for seed in range(100, 112)
    ]
    assert sum(fresh) / len(fresh) <= 60.0


def test_an_estimate_is_the_mean_and_what_it_may_miss() -> None:
    found = Estimate.of([10.0, 12.0, 11.0, 13.0, 14.0])
    assert found.percentile_ms == pytest.approx(12.0)
    assert found.above_ms == pytest.approx(2.132 * math.sqrt(2.5) / math.sqrt(5))
    assert Estimate.of([10.0, math.inf]).at_most_ms == math.inf


def test_a_stricter_objective_takes_more_replicas() -> None:
    counts = [size(REPLICA, 3000.0, Objective(0.95, limit), ARRIVALS).replicas for limit in (100.0, 30.0, 15.0)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_an_objective_below_the_run_time_names_the_nearest() -> None:
    with pytest.raises(PlanError) as caught:
        size(REPLICA, 100.0, Objective(0.99, 3.0), ARRIVALS)
    assert caught.value.binding == "latency"
    hint = caught.value.hint
    nearest = Objective.parse(hint[hint.index("p99=") :])
    assert nearest.limit_ms > 1e3 * LINE.seconds(1)
    assert size(REPLICA, 10.0, nearest, ARRIVALS).latency_ms <= nearest.limit_ms


@pytest.mark.parametrize(
    ("replica", "binds"),
    [
        (Replica(Service(0.0001, 0.002), BatchOptions(64, 0.0, 1000)), "compute"),
        (Replica(Service(0.0001, 0.0001, weight_s=0.02), BatchOptions(64, 0.0, 1000)), "memory"),
        (Replica(Service(0.01, 0.0001), BatchOptions(2, 0.0, 1000)), "batch"),
        (Replica(LINE, BatchOptions(8), crossing=Crossing(125_000, 10), port_mbps=10.0), "link"),
        (Replica(Service(0.0001, 0.0001), BatchOptions(8), Overhead(0.01)), "requests"),
        (Replica(Service(0.03, 0.0001), BatchOptions(64, 0.0, 1000)), "fixed"),
    ],
)
def test_what_binds_is_named(replica: Replica, binds: str) -> None:
    assert size(replica, 500.0, Objective(0.9, 200.0), ARRIVALS).binding == binds


def test_a_link_adds_to_every_answer() -> None:
    far = replace(REPLICA, crossing=Crossing(0, 0, Link(10.0, 50.0)))
    near, away = (size(one, 50.0, Objective(0.9, 100.0), ARRIVALS).outcome.mean_ms for one in (REPLICA, far))
    assert away - near == pytest.approx(50.0, abs=1e-6)


@pytest.mark.parametrize("value", [0.00123, 0.99, 1.0, 19.6, 536.2, 12345.6])
def test_the_nearest_objective_is_round_and_has_some_to_spare(value: float) -> None:
    found = nearest_above(value)
    assert 1.02 * value <= found <= 1.04 * value
    assert found == float(f"{found:.3g}")


def test_memory_bounds_the_workers(whole_bundle: object) -> None:
    with Bundle.open(str(whole_bundle)) as bundle:
        part = bundle.manifest.part().model_copy(update={"size_bytes": 50_000_000, "peak_activation_bytes": 1_000_000})
    assert worker_bytes(part, 50) == 100_000_000
    assert fitting_workers(part, 50, 160e6 + 350e6) == 3
    with pytest.raises(PlanError) as caught:
        fitting_workers(part, 50, 200e6)
    assert caught.value.binding == "memory"
    assert "260 MB" in caught.value.message and "200 MB" in caught.value.message


def test_one_replica_has_nobody_to_be_balanced_with() -> None:
    found = size(REPLICA, 1.0, Objective(0.9, 100.0), ARRIVALS)
    assert found.replicas == found.balance.servers == 1
    assert math.isinf(found.fewer.percentile_ms)
    assert found.balance.random_ms == found.balance.two_choices_ms

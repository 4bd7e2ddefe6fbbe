from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgekit.capacity.demand import Arrivals, Objective
from edgekit.capacity.replica import Overhead, Replica
from edgekit.capacity.service import Service
from edgekit.capacity.simulation import Simulation
from edgekit.runtimes.server.schedule import BatchOptions, Tenant

LINE = Service(0.004, 0.002)
P99 = Objective(0.99, 1.0)


def _evenly(count: int, gap_s: float) -> np.ndarray:
    return gap_s * np.arange(count)


def test_an_idle_server_answers_in_the_time_of_one_row() -> None:
    replica = Replica(LINE, BatchOptions(16), Overhead(0.001, 0.0005), shares_cores=False)
    found = Simulation(replica).run(_evenly(50, 1.0))
    assert found.latency_ms == pytest.approx(1e3 * replica.floor_s)
    assert found.refused == 0
    assert set(found.rows) == {1}


def test_nothing_that_comes_is_nothing() -> None:
    found = Simulation(Replica(LINE, BatchOptions())).run(np.array([]))
    assert len(found.latency_ms) == len(found.rows) == 0
    assert math.isnan(found.mean_ms)


def test_what_waits_together_runs_together() -> None:
    # The first runs alone; the seven behind it, which came meanwhile, in batches of at most four.
    found = Simulation(Replica(LINE, BatchOptions(4))).run(np.full(8, 1.0))
    finished = np.sort(found.latency_ms)
    ends = 1e3 * np.cumsum([LINE.seconds(1), LINE.seconds(4), LINE.seconds(3)])
    assert finished == pytest.approx(np.repeat(ends, [1, 4, 3]))


def test_a_first_row_waits_for_company_as_long_as_it_may() -> None:
    replica = Replica(LINE, BatchOptions(4, 10.0))
    alone = Simulation(replica).run(_evenly(20, 1.0))
    assert alone.latency_ms == pytest.approx(10 + 1e3 * LINE.seconds(1))
    full = Simulation(replica).run(np.repeat(_evenly(20, 1.0), 4))
    assert full.latency_ms == pytest.approx(1e3 * LINE.seconds(4))


def test_a_full_queue_refuses_what_the_node_would_refuse() -> None:
    found = Simulation(Replica(LINE, BatchOptions(1, 0.0, 2))).run(np.full(10, 1.0))
    # One runs, two wait, the rest of those counted (the last nine) is refused; one warm-up request is the one that ran.
    assert found.refused == 7
    assert np.isinf(found.latency_ms).sum() == 7


def test_deadlines_refuse_early_and_no_answer_comes_late() -> None:
    replica = Replica(LINE, BatchOptions(4, 0.0, 1000), deadline_s=0.05)
    rate = 2 * replica.most_per_s
    found = Simulation(replica).run(Arrivals.poisson(5000).at(rate))
    answered = found.latency_ms[np.isfinite(found.latency_ms)]
    assert found.refused > 1000
    assert answered.max() <= 50.0
    assert found.answered_hz > 0.8 * replica.most_per_s


def test_beyond_capacity_a_server_answers_what_it_can() -> None:
    replica = Replica(LINE, BatchOptions(16))
    found = Simulation(replica).run(Arrivals.poisson(8000).at(3 * replica.most_per_s))
    assert found.answered_hz == pytest.approx(replica.most_per_s, rel=0.03)
    assert found.utilisation == pytest.approx(1, abs=0.02)
    assert found.rows.mean() == pytest.approx(16, rel=0.05)


def test_own_work_on_the_models_core_costs_throughput() -> None:
    overhead = Overhead(0.001)
    shared = Replica(LINE, BatchOptions(16), overhead)
    apart = replace(shared, shares_cores=False)
    rate = 0.98 * apart.most_per_s
    arrivals = Arrivals.poisson(5000)
    assert shared.most_per_s < apart.most_per_s
    crowded, free = (Simulation(one).run(arrivals.at(rate)) for one in (shared, apart))
    assert crowded.mean_ms > 2 * free.mean_ms


def test_tenants_get_rows_by_their_shares() -> None:
    tenants = (Tenant("small", 1.0), Tenant("large", 3.0))
    replica = Replica(LINE, BatchOptions(1, 0.0, 10_000))
    found = Simulation(replica, tenants=tenants).run(np.full(2000, 1.0))
    # All are there at once and take turns in coming: of the first half of the answers, a quarter is the small one's.
    order = np.argsort(found.latency_ms)[:600]
    small = np.mean((order + int(0.1 * 2000)) % 2 == 0)
    assert small == pytest.approx(0.25, abs=0.1)


def test_the_same_seed_gives_the_same_run() -> None:
    replica = Replica(replace(LINE, jitter=(0.9, 1.0, 1.3)), BatchOptions(8))
    arrivals = Arrivals.poisson(2000).at(200.0)
    first, again, other = (Simulation(replica, seed=seed).run(arrivals).latency_ms for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_less_busy_of_two_is_better_than_anyone() -> None:
    replica = Replica(LINE, BatchOptions(4))
    arrivals = Arrivals.poisson(16_000).at(8 * 0.85 * replica.most_per_s)
    anyone, two = (Simulation(replica, servers=8, choices=c).run(arrivals).percentile_ms(P99) for c in (1, 2))
    assert two < 0.8 * anyone

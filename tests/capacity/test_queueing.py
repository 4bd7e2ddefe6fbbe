from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgekit.capacity.demand import Arrivals, Objective
from edgekit.capacity.queueing import bulk_bound_s, bulk_queue, erlang_c, forecast
from edgekit.capacity.replica import Crossing, Overhead, Replica
from edgekit.capacity.service import Service
from edgekit.capacity.simulation import Simulation
from edgekit.errors import PlanError
from edgekit.planning.link import Link
from edgekit.runtimes.server.schedule import BatchOptions

LINE = Service(0.004, 0.002)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_one_row_at_a_time_is_the_textbook_queue(load: float) -> None:
    # M/D/1: wait = load / (2 (1 - load)) times the service (Pollaczek and Khinchine).
    service = Service(0.0, 0.01)
    found = bulk_queue(service, load / 0.01, 1, 0.99)
    assert found.wait_s == pytest.approx(load * 0.01 / (2 * (1 - load)), rel=1e-3)
    assert found.utilisation == pytest.approx(load, rel=1e-3)
    assert found.rows == pytest.approx(1)


def test_run_times_that_vary_make_the_wait_longer_as_their_second_moment_does() -> None:
    still = bulk_queue(Service(0.0, 0.01), 50.0, 1, 0.9)
    uneven = bulk_queue(Service(0.0, 0.01, jitter=(0.5, 1.5)), 50.0, 1, 0.9)
    assert uneven.wait_s == pytest.approx(1.25 * still.wait_s, rel=1e-3)


@pytest.mark.parametrize("max_batch", [1, 4, 16])
@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_formulae_and_simulation_agree_on_one_worker(max_batch: int, load: float) -> None:
    replica = Replica(LINE, BatchOptions(max_batch, 0.0, 100_000))
    rate = load * replica.most_per_s
    share = 0.95
    runs = [Simulation(replica, seed=seed).run(Arrivals.poisson(4000, seed).at(rate)) for seed in range(4)]
    means = np.array([run.mean_ms for run in runs])
    percentiles = np.array([run.percentile_ms(Objective(share, 1.0)) for run in runs])
    found = forecast(replica, rate, share)
    # Four deviations of the mean of four runs; for percentiles a batch is looked at in its twelfths: half of one.
    assert 1e3 * found.mean_s == pytest.approx(means.mean(), abs=4 * means.std(ddof=1) / 2 + 0.01 * means.mean())
    slack = 4 * percentiles.std(ddof=1) / 2 + 1e3 * LINE.seconds(max_batch) / 24
    assert 1e3 * found.percentile_s == pytest.approx(percentiles.mean(), abs=slack)
    assert found.rows == pytest.approx(np.mean([run.rows.mean() for run in runs]), rel=0.05)


@pytest.mark.parametrize("load", [0.05, 0.4, 0.9])
def test_the_closed_bound_lies_above_the_mean_and_near_it(load: float) -> None:
    rate = load / LINE.compute_s
    mean = bulk_queue(LINE, rate, 400, 0.9).mean_s
    bound = bulk_bound_s(LINE, rate)
    assert mean <= bound * (1 + 1e-6)
    assert bound <= 1.1 * mean
    assert bulk_bound_s(LINE, 1.01 / LINE.compute_s) == math.inf


def test_more_workers_wait_less() -> None:
    one = bulk_queue(LINE, 100.0, 8, 0.95)
    two = bulk_queue(LINE, 200.0, 8, 0.95, workers=2)
    assert two.wait_s < one.wait_s
    # An idle pair answers no faster than one.
    assert bulk_queue(LINE, 0.01, 8, 0.5, workers=2).mean_s == pytest.approx(LINE.seconds(1), rel=1e-3)


def test_erlang_c_by_hand() -> None:
    assert erlang_c(1, 0.3) == pytest.approx(0.3)
    # Two servers: a^2 / (2 (1 - a / 2)) over that plus 1 + a.
    load = 1.2
    waiting = load**2 / 2 / (1 - load / 2)
    assert erlang_c(2, load) == pytest.approx(waiting / (1 + load + waiting))


def test_links_and_own_work_come_on_top() -> None:
    bare = Replica(LINE, BatchOptions(4), shares_cores=False)
    link = Link(10.0, 20.0)
    far = replace(bare, crossing=Crossing(12_500, 1_250, link), overhead=Overhead(0.001, 0.0005))
    # 20 ms of round trip, 10 and 1 ms of transfer, 1.5 ms of the node; its own queue is next to empty at this rate.
    more = forecast(far, 1.0, 0.5).mean_s - forecast(bare, 1.0, 0.5).mean_s
    assert more == pytest.approx(0.0325, abs=1e-5)


def test_a_rate_beyond_reach_is_refused() -> None:
    replica = Replica(LINE, BatchOptions(4))
    with pytest.raises(PlanError) as caught:
        forecast(replica, 1.01 * replica.most_per_s, 0.99)
    assert caught.value.binding == "rate"

"""What formulae say of a batching server: before anything is simulated, and to be checked against it.

One worker that takes who waits: the number left behind after each batch is a Markov chain (bulk service with Poisson
arrivals: Bailey 1954, JRSS B 16; the general rule of Neuts 1967, Ann. Math. Stat. 38, with batches from 1 to a most).
Several workers: the same, taken to them by Erlang's C as Allen and Cunneen take G/G/1 to G/G/c (Allen 1990,
Probability, Statistics, and Queueing Theory, 2nd ed., section 5.4). Beside them the closed upper bound of the mean
latency of Inoue 2021 (Performance Evaluation 147, arXiv:1912.06322), for batches without a limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekit.capacity.replica import Replica
from edgekit.capacity.service import Service
from edgekit.errors import PlanError

MAX_STATES = 1200
NEGLIGIBLE = 1e-7
MOMENTS = 12  # within a batch, at which an arrival is looked at
COUNTS = 16  # of others that come meanwhile, that are looked at


@dataclass(frozen=True)
class Forecast:
    """Of one replica at a rate, times in seconds and links counted: `wait_s` in the queue on average, `rows` of a batch
    on average, `utilisation` of the workers, `percentile_s` the latency that the share asked for stays within, `method`
    how it was found. `bound_s`: no mean latency is above it where batches have no limit; infinite where it says
    nothing."""

    wait_s: float
    mean_s: float
    percentile_s: float
    rows: float
    utilisation: float
    bound_s: float
    method: str


def forecast(replica: Replica, rate_hz: float, share: float) -> Forecast:
    """Single rows at `rate_hz`, as a Poisson process. Raises PlanError at or above what the replica can do at all."""
    if rate_hz >= replica.most_per_s:
        raise PlanError(f"{rate_hz:.4g} requests a second, and a replica does {replica.most_per_s:.4g}", binding="rate")
    service, batching = _with_own_work(replica), replica.batching
    around_s = replica.overhead.request_s + replica.overhead.hop_s + replica.crossing.latency_s
    around_s += _front_wait_s(replica, rate_hz)
    found = bulk_queue(service, rate_hz, batching.max_batch, share, batching.workers)
    gather_s = min(batching.max_delay_ms / 1e3, (batching.max_batch - 1) / rate_hz)
    # The first waits as long, those who come meanwhile half of it; a busy server gathers without waiting.
    company = rate_hz * gather_s
    waits_s = (1 - found.utilisation) * gather_s * (1 + company / 2) / (1 + company)
    return replace(
        found,
        wait_s=found.wait_s + waits_s,
        mean_s=found.mean_s + waits_s + around_s,
        percentile_s=found.percentile_s + gather_s + around_s,
        bound_s=bulk_bound_s(service, rate_hz) + around_s if batching.workers == 1 and not gather_s else math.inf,
    )


def _with_own_work(replica: Replica) -> Service:
    """A batch with the node's own work on it, and where they share cores with that on each row."""
    stolen = replica.overhead.request_s / replica.batching.workers if replica.shares_cores else 0.0
    service = replica.service
    return replace(
        service,
        fixed_s=service.fixed_s + replica.overhead.batch_s,
        compute_s=service.compute_s + stolen,
        activation_s=service.activation_s + stolen,
    )


def _front_wait_s(replica: Replica, rate_hz: float) -> float:
    """M/D/1: of the node's own work, one request after another (Pollaczek and Khinchine)."""
    work = replica.overhead.request_s
    load = rate_hz * work
    return load * work / (2 * (1 - load)) if load < 1 else math.inf


def bulk_queue(service: Service, rate_hz: float, max_batch: int, share: float, workers: int = 1) -> Forecast:
    """The chain q' = q - b + Poisson(rate x seconds(b)), b = q between 1 and `max_batch`: exact for run times that are
    fixed, or spread alike at all sizes.

    Mean latency by Little's law over one step; percentiles from where in a batch an arrival falls. Several workers wait
    like one that is so many times as fast, less by the chance that one of them is idle: the ratio of Erlang's C to the
    utilisation, which is how Allen and Cunneen take G/G/1 to G/G/c.
    """
    uneven = _few(service.jitter)
    own = np.array([0.0] + [service.mean_seconds(rows) for rows in range(1, max_batch + 1)])
    times = own / workers
    states = min(MAX_STATES, 4 * max_batch + int(4 * rate_hz * times[-1]) + 64)
    left = np.arange(states)
    batch = np.clip(left, 1, max_batch)
    chances = _stationary(rate_hz * times[batch], left - np.minimum(left, batch), uneven)
    run = times[batch]
    cycle = float(chances @ (run + (left == 0) / rate_hz))
    area = float(chances @ (np.maximum(left, 1) * run + rate_hz * np.mean(uneven**2) * run**2 / 2))
    rows = float(chances @ batch)
    utilisation = min(1.0, float(chances @ run) / cycle)
    served_s = float(chances @ (batch * run)) / rows
    busy = erlang_c(workers, workers * utilisation) / utilisation if utilisation < 1 - 1e-9 else 1.0
    wait_s = busy * max(0.0, area / cycle / rate_hz - served_s)
    return Forecast(
        wait_s=wait_s,
        mean_s=wait_s + workers * served_s,
        percentile_s=_percentile(chances, times, own, rate_hz, busy, share),
        rows=rows,
        utilisation=utilisation,
        bound_s=math.inf,
        method="bulk-service chain" if workers == 1 else f"bulk-service chain, {workers} workers by Erlang's C",
    )


def _few(jitter: Sequence[float]) -> np.ndarray:
    """A sample as eight values at most, each as likely as the next, with a mean of 1: float [k]."""
    ordered = np.sort(np.asarray(jitter, float))
    parts = [part.mean() for part in np.array_split(ordered, min(8, len(ordered)))]
    return np.asarray(np.asarray(parts) / np.mean(parts))


def _stationary(arrivals: np.ndarray, behind: np.ndarray, uneven: np.ndarray) -> np.ndarray:
    """Of the chain behind[q] + Poisson(arrivals[q] x one of `uneven`); what would pass the last state stays there.
    Both [n] -> [n]."""
    states = len(arrivals)
    chance = np.mean([_poisson(np.arange(states), factor * arrivals[:, None]) for factor in uneven], axis=0)
    step = np.zeros((states, states))
    for state in range(states):
        first = behind[state]
        step[state, first:] = chance[state, : states - first]
    step[:, -1] += np.maximum(0.0, 1 - step.sum(1))
    system = step.T - np.eye(states)
    system[-1] = 1.0
    right = np.zeros(states)
    right[-1] = 1.0
    found = np.maximum(np.linalg.solve(system, right), 0.0)
    return np.asarray(found / found.sum())


def _poisson(counts: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The chance of each of [n] counts at means [m, 1]: [m, n]."""
    log_factorial = np.array([math.lgamma(count + 1) for count in counts])
    safe = np.maximum(mean, 1e-300)
    return np.asarray(np.exp(counts * np.log(safe) - safe - log_factorial))


def _percentile(
    chances: np.ndarray, times: np.ndarray, own: np.ndarray, rate_hz: float, busy: float, share: float
) -> float:
    """Over states, moments at which an arrival falls into a batch, and how many others come before and behind it."""
    max_batch = len(times) - 1
    latencies = [np.array([own[1]])]
    weights = [np.array([chances[0]])]  # who finds the server idle
    gone = (np.arange(MOMENTS) + 0.5) / MOMENTS
    for left in np.flatnonzero(chances > NEGLIGIBLE).tolist():
        rows = min(max(left, 1), max_batch)
        run, behind = times[rows], max(0, left - rows)
        mean = rate_hz * run
        most = int(mean + 5 * math.sqrt(mean) + 4)
        counts = np.unique(np.linspace(0.0, most, min(most + 1, COUNTS)).astype(np.int64))
        before, after = (_poisson(counts, mean * part[:, None]) for part in (gone, 1 - gone))
        before, after = before / before.sum(1, keepdims=True), after / after.sum(1, keepdims=True)
        full = (behind + counts) // max_batch
        # [moments, before, after]
        company = (behind + 1 + counts - full * max_batch)[:, None] + counts
        # Whoever waits for whole batches first finds more company than came while this one ran.
        company = np.minimum(company + np.round(full * rate_hz * times[-1]).astype(int)[:, None], max_batch)
        wait = (run * (1 - gone))[:, None] + full * times[-1]
        latency = busy * wait[:, :, None] + own[company]
        weight = before[:, :, None] * after[:, None, :]
        latencies.append(latency.ravel())
        weights.append((chances[left] * mean / MOMENTS * weight).ravel())
    values, chance = np.concatenate(latencies), np.concatenate(weights)
    order = np.argsort(values)
    sums = np.cumsum(chance[order])
    return float(values[order][min(len(order) - 1, np.searchsorted(sums, share * sums[-1]))])


def erlang_c(servers: int, load: float) -> float:
    """The chance that a customer of M/M/c waits; `load` in servers, below `servers`."""
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    return servers * blocked / (servers - load * (1 - blocked))


def bulk_bound_s(service: Service, rate_hz: float) -> float:
    """Inoue 2021: above the mean latency of one worker that takes all who wait, at run times a n + t.

    Our run times bend; the straight line above them is taken. Infinite where batches without limit cannot keep up.
    """
    jitter = float(np.mean(service.jitter))
    slope = jitter * service.slope_s
    start = jitter * (service.fixed_s + service.weight_s)
    load = rate_hz * slope
    if load >= 1:
        return math.inf
    low = (slope + start) / (2 * (1 - load)) * (1 + 2 * rate_hz * start + (1 - rate_hz * start) / (1 + load))
    high = 1.5 * start / (1 - load) + slope / 2 * (load + 2) / (1 - load**2)
    return min(low, high)

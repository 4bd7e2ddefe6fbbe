"""How many replicas a load needs, and what stands in the way of fewer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgekit.capacity.balance import Balance, check_balance
from edgekit.capacity.demand import Arrivals, Objective
from edgekit.capacity.queueing import Forecast, forecast
from edgekit.capacity.replica import Replica
from edgekit.capacity.simulation import Outcome, Simulation
from edgekit.errors import PlanError
from edgekit.progress import Progress, silent
from edgekit.runtimes.server.schedule import Tenant

Binding = Literal["compute", "memory", "link", "batch", "requests", "fixed"]

# An almost idle replica, as a share of what it can do at most.
IDLE = 0.002
# Courses of arrivals that must hold the objective, and Student's t for one less than so many: 95 %, one-sided.
COURSES, STUDENT = 5, 2.132
# A larger batch is worth naming where it would do so much more.
WORTH_MORE = 1.1
MEANING: dict[Binding, str] = {
    "compute": "arithmetic: a faster processor, a smaller model or fewer bits help",
    "memory": "memory: more bandwidth, or weights and activations of fewer bytes help",
    "link": "the server's network: fewer bytes a request help (a bottleneck, a coarser rate)",
    "batch": "the batch: --max-batch allows no larger one, which would do more a second",
    "requests": "the node's own work on each request: more rows a request, or more nodes a machine help",
    "fixed": "what each run of the model costs whatever it holds: larger batches or fewer operators help",
}


@dataclass(frozen=True)
class Estimate:
    """The objective's percentile over several simulations: their mean, and how far the true one may lie above it (95 %,
    one-sided, by Student's t). Infinite where a replica cannot keep up."""

    percentile_ms: float
    above_ms: float

    @classmethod
    def of(cls, percentiles_ms: Sequence[float]) -> Estimate:
        mean = statistics.fmean(percentiles_ms)
        if math.isinf(mean):
            return cls(mean, 0.0)
        return cls(mean, STUDENT * statistics.stdev(percentiles_ms) / math.sqrt(len(percentiles_ms)))

    @property
    def at_most_ms(self) -> float:
        return self.percentile_ms + self.above_ms


@dataclass(frozen=True)
class Sizing:
    """`replicas` carry `rate_hz` within `objective`, `estimate` by simulation; `outcome` (of one simulation) and
    `forecast` (formulae, None where they have no answer) are of one of them at its share. `fewer`: what
    `fewer_replicas` would have done."""

    replica: Replica
    objective: Objective
    rate_hz: float
    replicas: int
    estimate: Estimate
    outcome: Outcome
    forecast: Forecast | None
    binding: Binding
    balance: Balance
    fewer_replicas: int
    fewer: Estimate

    @property
    def each_hz(self) -> float:
        return self.rate_hz / self.replicas

    @property
    def latency_ms(self) -> float:
        return self.estimate.percentile_ms

    @property
    def disagreement(self) -> float | None:
        """Of the formulae from the simulation, relative, at the objective's percentile."""
        if self.forecast is None:
            return None
        return 1e3 * self.forecast.percentile_s / self.latency_ms - 1


def size(
    replica: Replica,
    rate_hz: float,
    objective: Objective,
    arrivals: Arrivals,
    *,
    tenants: Sequence[Tenant] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> Sizing:
    """The fewest replicas that hold `objective`: each count is simulated as one replica at its share, by bisection over
    one course of arrivals. A search finds the course that flatters it, so that the count is then raised, a hundredth at
    a time, until several other courses hold the objective with their margin.

    A share of Poisson arrivals at random is Poisson again; a trace keeps its shape and is slowed down. Raises PlanError
    naming the nearest objective that an idle replica meets.
    """
    tried: dict[int, Outcome] = {}

    def at(count: int) -> Outcome:
        if count not in tried:
            progress("simulate", len(tried), 0)
            tried[count] = _simulate(replica, rate_hz / count, arrivals, tenants, seed)
        return tried[count]

    def holds(count: int) -> bool:
        return rate_hz / count <= replica.port_per_s and at(count).percentile_ms(objective) <= objective.limit_ms

    refuse_impossible(replica, objective, arrivals, tenants=tenants, seed=seed)
    least = max(1, math.ceil(rate_hz / replica.most_per_s))
    first = max(least, _guess(replica, rate_hz, objective, least))

    def sure(count: int) -> Estimate:
        progress("simulate again", 0, 0)
        return _estimate(replica, rate_hz / count, objective, arrivals, tenants, seed)

    count = _fewest(holds, least, first)
    while (estimate := sure(count)).at_most_ms > objective.limit_ms and rate_hz / count > IDLE * replica.most_per_s:
        count += max(1, count // 100)
    outcome, fewer = at(count), max(1, count - max(1, count // 20))
    return Sizing(
        replica=replica,
        objective=objective,
        rate_hz=rate_hz,
        replicas=count,
        estimate=estimate,
        outcome=outcome,
        forecast=_forecast(replica, rate_hz / count, objective),
        binding=_binding(replica, outcome, rate_hz, count),
        balance=check_balance(replica, rate_hz / count, count, arrivals.again(1), objective, seed),
        fewer_replicas=fewer,
        fewer=sure(fewer) if count > 1 else Estimate(math.inf, 0.0),
    )


def refuse_impossible(
    replica: Replica, objective: Objective, arrivals: Arrivals, *, tenants: Sequence[Tenant] = (), seed: int = 0
) -> None:
    """Raises PlanError where even an almost idle replica is slower than asked, with the nearest that it meets."""
    idle = _simulate(replica, IDLE * replica.most_per_s, arrivals, tenants, seed)
    best = idle.percentile_ms(objective)
    if best <= objective.limit_ms:
        return
    nearest = nearest_above(best)
    parts = [f"{1e3 * replica.service.seconds(1):.3g} ms for the model"]
    if replica.crossing.latency_s:
        parts.append(f"{1e3 * replica.crossing.latency_s:.3g} ms on the link")
    if replica.batching.max_delay_ms:
        parts.append(f"up to {replica.batching.max_delay_ms:g} ms of waiting for company")
    shown = f"p{100 * objective.share:g}"
    raise PlanError(
        f"no number of replicas answers within {objective}: an idle one takes {best:.3g} ms at {shown} "
        f"({', '.join(parts)})",
        binding="latency",
        hint=f"the nearest that can be met: --slo {shown}={nearest:g}ms",
    )


def nearest_above(value_ms: float) -> float:
    """A round number (three figures) with two in a hundred to spare."""
    digits = 10.0 ** (math.floor(math.log10(1.02 * value_ms)) - 2)
    return round(math.ceil(1.02 * value_ms / digits) * digits, 6)


def _estimate(
    replica: Replica, rate_hz: float, objective: Objective, arrivals: Arrivals, tenants: Sequence[Tenant], seed: int
) -> Estimate:
    found: list[float] = []
    for number in range(COURSES):
        outcome = _simulate(replica, rate_hz, arrivals.again(number + 1), tenants, seed + number + 1)
        found.append(outcome.percentile_ms(objective))
        if math.isinf(found[-1]):
            break
    return Estimate.of(found)


def _simulate(replica: Replica, rate_hz: float, arrivals: Arrivals, tenants: Sequence[Tenant], seed: int) -> Outcome:
    return Simulation(replica, tenants=tenants, seed=seed).run(arrivals.at(rate_hz))


def _forecast(replica: Replica, rate_hz: float, objective: Objective) -> Forecast | None:
    try:
        return forecast(replica, rate_hz, objective.share)
    except PlanError:
        return None


def _guess(replica: Replica, rate_hz: float, objective: Objective, least: int) -> int:
    """By formulae, to a fiftieth: where the bisection begins."""
    low, high = least, least
    while not _formulae_hold(replica, rate_hz / high, objective) and high < 64 * least:
        low, high = high, 2 * high
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if _formulae_hold(replica, rate_hz / middle, objective) else (middle, high)
    return high


def _formulae_hold(replica: Replica, rate_hz: float, objective: Objective) -> bool:
    found = _forecast(replica, rate_hz, objective)
    return found is not None and 1e3 * found.percentile_s <= objective.limit_ms


def _fewest(holds: Callable[[int], bool], least: int, first: int) -> int:
    """The smallest count from `least` on that holds, where larger ones do too; looked for around `first`."""
    low, high, step = least - 1, first, max(1, first // 20)
    while not holds(high):
        low, high, step = high, high + step, 2 * step
    step = max(1, first // 20)
    while low < least or high - low > step:
        if high - step <= max(low, least - 1):
            break
        if not holds(high - step):
            low = high - step
            break
        high, step = high - step, 2 * step
    low = max(low, least - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _binding(replica: Replica, outcome: Outcome, rate_hz: float, count: int) -> Binding:
    """What one replica less would run into."""
    each = rate_hz / max(1, count - 1) if count > 1 else rate_hz
    if each >= replica.port_per_s:
        return "link"
    if replica.front_per_s < replica.compute_per_s:
        return "requests"
    batching = replica.batching
    rows = max(1, round(float(outcome.rows.mean()))) if len(outcome.rows) else 1
    larger = replica.with_batching(replace(batching, max_batch=2 * batching.max_batch))
    if rows > 0.8 * batching.max_batch and larger.compute_per_s > WORTH_MORE * replica.compute_per_s:
        return "batch"
    if replica.shares_cores and rows * replica.overhead.request_s > replica.service.seconds(rows):
        return "requests"
    return replica.service.bound(rows)

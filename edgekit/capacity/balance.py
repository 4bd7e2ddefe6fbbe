"""Whether many replicas behind a balancer do what one at its share of the load does."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.capacity.demand import Arrivals, Objective
from edgekit.capacity.replica import Replica
from edgekit.capacity.simulation import Simulation

MOST_SERVERS = 16


@dataclass(frozen=True)
class Balance:
    """`servers` replicas simulated together: the objective's percentile where each request goes anywhere (`random_ms`)
    and where it goes to the less busy of two drawn at random (`two_choices_ms`)."""

    servers: int
    random_ms: float
    two_choices_ms: float


def check_balance(
    replica: Replica, each_hz: float, count: int, arrivals: Arrivals, objective: Objective, seed: int = 0
) -> Balance:
    """Up to 16 of `count` replicas, each at `each_hz` on average. Two choices are nearly as good as knowing all queues
    (Mitzenmacher 2001, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 12): they take the edge off
    what chance does to single replicas."""
    servers = min(count, MOST_SERVERS)
    found = []
    for choices in (1, 2):
        simulation = Simulation(replica, servers=servers, choices=choices, seed=seed)
        found.append(simulation.run(arrivals.at(servers * each_hz)).percentile_ms(objective))
    return Balance(servers, *found)

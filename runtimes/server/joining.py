"""Who takes the next free slot of a running batch: the tenant that had the fewest steps for its share.

Counting steps that were run, not requests that came, is what keeps a tenant of long answers from taking all slots
(virtual token counters: Sheng et al., Fairness in Serving Large Language Models, OSDI 2024, algorithm 2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from edgekit.runtimes.server.schedule import Tenant

T = TypeVar("T")


class Joining(Generic[T]):
    """Those who wait, first come first served within a tenant. Not safe to use from several threads at once."""

    def __init__(self, tenants: Iterable[Tenant] = ()) -> None:
        self._shares = {tenant.name: tenant.share for tenant in tenants}
        self._queues: dict[str, deque[T]] = {}
        self._steps: dict[str, float] = {}  # of tenants that wait or run
        self._running: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def room(self, tenant: str, places: int) -> int:
        """How many more of `tenant` may wait where all have `places`: by their shares, where tenants are known."""
        own = places
        if self._shares:
            shares = {"": 1.0, **self._shares}
            own = max(1, int(places * shares.get(tenant, 1.0) / sum(shares.values())))
        return min(places - len(self), own - len(self._queues.get(tenant, ())))

    def push(self, tenant: str, item: T) -> None:
        """A tenant that was away brings no credit along: it starts level with the least served of the others."""
        if tenant not in self._steps:
            self._steps[tenant] = min(self._steps.values(), default=0.0)
        self._queues.setdefault(tenant, deque()).append(item)

    def pop(self) -> T | None:
        """The next to join; counts as running until `left`."""
        if not self._queues:
            return None
        tenant = min(self._queues, key=lambda name: (self._steps[name], self._running.get(name, 0)))
        item = self._queues[tenant].popleft()
        if not self._queues[tenant]:
            del self._queues[tenant]
        self._running[tenant] = self._running.get(tenant, 0) + 1
        return item

    def charge(self, tenant: str, steps: int = 1) -> None:
        self._steps[tenant] += steps / self._shares.get(tenant, 1.0)

    def left(self, tenant: str) -> None:
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
            self._forget(tenant)

    def drop(self, wanted: Callable[[T], bool]) -> list[T]:
        """Takes out those who wait and are `wanted`."""
        dropped: list[T] = []
        for tenant, queue in list(self._queues.items()):
            found = [item for item in queue if wanted(item)]
            if found:
                dropped += found
                self._queues[tenant] = deque(item for item in queue if item not in found)
                if not self._queues[tenant]:
                    del self._queues[tenant]
                    self._forget(tenant)
        return dropped

    def _forget(self, tenant: str) -> None:
        if tenant not in self._queues and tenant not in self._running:
            del self._steps[tenant]

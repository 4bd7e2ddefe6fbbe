"""One request on its way through a node: when it must be done, where it has been, what the answer will say of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from edgekit.errors import DeadlineError
from edgekit.runtimes.protocol.calls import InferCall, Parameter
from edgekit.runtimes.protocol.frames import Served, Wish
from edgekit.runtimes.server.model import ServedModel

HOPS, MAX_HOPS = "edgekit-hops", 4
PASSED_ON = ("traceparent", "tracestate", HOPS)


@dataclass
class Course:
    """Times in nanoseconds. `phases`: (name, start, end) on perf_counter.
    `coarser`: parts that answered instead of those that were asked. `cut_short`: by a deadline or a budget. `said`:
    what the answer says beside what every answer does."""

    call: InferCall
    wish: Wish
    deadline: float
    headers: Mapping[str, str] = field(default_factory=dict)
    started_ns: int = field(default_factory=time.perf_counter_ns)
    phases: list[tuple[str, int, int]] = field(default_factory=list)
    tiers: list[str] = field(default_factory=list)
    rates: list[int] = field(default_factory=list)
    queue_ns: int = 0
    forward_ns: int = 0
    upstream: Served = Served()
    model: ServedModel | None = None
    tenant: str = ""
    coarser: list[str] = field(default_factory=list)
    cut_short: bool = False
    said: dict[str, Parameter] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            self.phases.append((name, start, time.perf_counter_ns()))

    def spent_ns(self, *names: str) -> int:
        return sum(end - start for name, start, end in self.phases if name in names)

    @property
    def hops(self) -> int:
        """Nodes that this request has passed."""
        text = self.headers.get(HOPS, "0")
        return int(text) if text.isdecimal() and len(text) < 4 else MAX_HOPS

    def left_s(self) -> float | None:
        """Raises DeadlineError where nothing is left; None without a deadline."""
        if self.deadline == float("inf"):
            return None
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"the deadline of the request to {self.call.model} has passed")
        return left

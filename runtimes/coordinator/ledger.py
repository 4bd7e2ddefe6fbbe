"""What a request has cost and met so far, and the Answer that is made from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.bundle.manifest import Tier
from edgekit.runtimes.coordinator.answer import Answer
from edgekit.runtimes.coordinator.clock import Clock
from edgekit.runtimes.coordinator.parts import Phase


@dataclass
class Ledger:
    """`faults` kept the plan from being carried out; `asides` befell the local run beside it, and are no fault of an
    answer that comes as planned. `choice`: why the plan's variant was chosen, where another loses less."""

    clock: Clock
    started: float
    request_id: str
    policy: str
    faults: list[str] = field(default_factory=list)
    asides: list[str] = field(default_factory=list)
    choice: str = ""
    trace_id: str = ""
    deadline: float = math.inf
    spent_ms: dict[str, float] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    attempts: int = 0

    def note(self, **stages: float) -> None:
        """Milliseconds of each stage."""
        for name, spent in stages.items():
            if spent:
                self.spent_ms[name] = self.spent_ms.get(name, 0.0) + spent

    def note_phases(self, phases: Iterable[Phase]) -> None:
        """(stage, start, end) in the clock's seconds."""
        for name, start, end in phases:
            self.note(**{name: 1e3 * (end - start)})

    @property
    def reasons(self) -> str:
        return "; ".join(filter(None, [*self.faults, *self.asides]))

    def answer(
        self,
        outputs: Mapping[str, np.ndarray],
        tier: Tier,
        variant: str,
        *,
        rates: Sequence[int] = (),
        degraded: bool = False,
        exited: bool = False,
        confidence: float | None = None,
        reason: str = "",
        left: tuple[int, ...] = (),
    ) -> Answer:
        """`reason` joins the faults of a degraded one."""
        now = self.clock.now()
        return Answer(
            outputs=dict(outputs),
            tier=tier,
            variant=variant,
            total_ms=1e3 * (now - self.started),
            late_ms=1e3 * max(0.0, now - self.deadline),
            request_id=self.request_id,
            rates=tuple(rates),
            degraded=degraded,
            reason="; ".join(filter(None, [*self.faults, reason])) if degraded else "",
            exited=exited,
            confidence=confidence,
            latency_ms=dict(self.spent_ms),
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            attempts=self.attempts,
            policy=self.policy,
            choice=self.choice,
            trace_id=self.trace_id,
            left=left,
        )

    def degraded(self, spare: Answer) -> Answer:
        """An answer that was there already, with what went wrong since."""
        return self.answer(
            spare.outputs,
            spare.tier,
            spare.variant,
            rates=spare.rates,
            degraded=True,
            exited=spare.exited,
            confidence=spare.confidence,
        )

"""What a request comes back with: the outputs, and where, how, at which rate and in what time they were made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.bundle.manifest import Tier


@dataclass(frozen=True)
class Answer:
    """`tier` made the outputs with `variant`; `rates`: the codec rung of each crossing, empty where nothing crossed.

    `degraded` marks anything but what was planned, and `reason` says why. `exited`: it left at the variant's exit.
    `latency_ms` by stage (head, exit, encode, connect, network, queue, compute, local), as far as each was waited for;
    `total_ms` from the question to the answer. `bytes_sent` and `bytes_received` count every attempt. `confidence` is
    that of a classification where an exit is calibrated. `choice`: why this variant, where another loses less. `left`:
    how many samples left at each exit of a variant with several, the end last. `late_ms`: how long after its deadline
    it came, 0 in time. `silent`: nodes that did not answer or refuse us, and why, whether they were missed or not:
    ways through them were left out. `request_id` is what the node knew it
    by, `trace_id` what `edgekit trace` does; "" where nothing is recorded.
    """

    outputs: dict[str, np.ndarray]
    tier: Tier
    variant: str
    total_ms: float
    request_id: str
    rates: tuple[int, ...] = ()
    degraded: bool = False
    reason: str = ""
    exited: bool = False
    confidence: float | None = None
    latency_ms: dict[str, float] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    attempts: int = 0
    policy: str = ""
    choice: str = ""
    left: tuple[int, ...] = ()
    trace_id: str = ""
    late_ms: float = 0.0
    silent: dict[Tier, str] = field(default_factory=dict)

    @property
    def rate(self) -> int | None:
        """The rung that left the device; None where nothing did."""
        return self.rates[0] if self.rates else None

    def to_json(self) -> dict[str, Any]:
        """All but the outputs."""
        return {
            "tier": self.tier,
            "variant": self.variant,
            "rate": self.rate,
            "rates": list(self.rates),
            "degraded": self.degraded,
            "reason": self.reason,
            "exited": self.exited,
            "confidence": self.confidence,
            "total_ms": self.total_ms,
            "late_ms": self.late_ms,
            "stages_ms": dict(self.latency_ms),
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "attempts": self.attempts,
            "policy": self.policy,
            "choice": self.choice,
            "left": list(self.left),
            "silent": dict(self.silent),
            "request_id": self.request_id,
            "trace_id": self.trace_id or None,
        }

    def summary(self) -> str:
        """One line for people: `edge, variant split at rate 2, 61.4 ms (head 12.1, network 40.2, other 2.1), 702 B up`.

        `other` is what the stages leave: planning, and turns waited for."""
        rate = f" at rate {self.rate}" if self.rate is not None else ""
        where = f"{self.tier}{' (early exit)' if self.exited else ''}, variant {self.variant}{rate}"
        other_ms = self.total_ms - sum(self.latency_ms.values())
        spent_ms = {**self.latency_ms, **({"other": other_ms} if self.latency_ms and other_ms >= 0.05 else {})}
        stages = ", ".join(f"{name} {spent:.1f}" for name, spent in spent_ms.items())
        line = f"{where}, {self.total_ms:.1f} ms" + (f" ({stages})" if stages else "")
        if self.bytes_sent:
            line += f", {self.bytes_sent} B up"
        if self.late_ms > 0:
            line += f"; late by {self.late_ms:.1f} ms"
        if self.degraded:
            return f"{line}; degraded: {self.reason}"
        return f"{line}; {self.choice}" if self.choice else line

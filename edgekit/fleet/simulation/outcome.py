"""What a simulation counted."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Outcome:
    """`latencies_s`: from asking to the answer, without the time that was asked to wait. `ran`: digest -> devices that
    ever answered with it; `running`: how many do at the end. `returned`: devices that ran a bad one and do no more."""

    devices: int = 0
    enrolled: int = 0
    enrol_s: float = 0.0
    seconds: float = 0.0
    syncs: int = 0
    windows: int = 0
    lost_windows: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    downloads: int = 0
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    ran: dict[str, set[str]] = field(default_factory=dict)
    running: Counter[str] = field(default_factory=Counter)
    bad_ran: int = 0
    returned: int = 0

    def percentile_ms(self, share: float) -> float:
        """nan before the first answer."""
        return 1e3 * float(np.quantile(np.frombuffer(self.latencies_s), share)) if self.latencies_s else math.nan

    def summary(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "devices": self.devices,
            "enrolled": self.enrolled,
            "enrol_s": round(self.enrol_s, 2),
            "seconds": round(self.seconds, 2),
            "syncs": self.syncs,
            "syncs_per_s": round(self.syncs / self.seconds, 1) if self.seconds else 0.0,
            "windows": self.windows,
            "windows_per_s": round(self.windows / self.seconds, 1) if self.seconds else 0.0,
            "lost_windows": self.lost_windows,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "downloads": self.downloads,
            "latency_ms": {
                name: round(self.percentile_ms(share), 2)
                for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
            },
            "errors": dict(self.errors.most_common()),
            "failed_updates": dict(self.failures.most_common(5)),
            "bundles": {
                digest: {"ever_ran": len(held), "running": self.running[digest]} for digest, held in self.ran.items()
            },
            "bad_bundle": {"ever_ran": self.bad_ran, "returned": self.returned},
        }

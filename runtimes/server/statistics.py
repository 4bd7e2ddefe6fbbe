"""What a model did, counted: the numbers behind Triton's statistics extension."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgekit.runtimes.server.batching import Finished

PHASES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
# Ours: pictures and texts made into inputs, outputs into labels. No part of the compute_ ones.
STAGES = ("preprocess", "postprocess")


@dataclass
class Duration:
    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass
class Counts:
    """`inferences` in samples, `executions` in runs of the model; `batches`: rows -> time of the runs."""

    inferences: int = 0
    executions: int = 0
    last_inference_ms: int = 0
    phases: dict[str, Duration] = field(default_factory=lambda: {name: Duration() for name in (*PHASES, *STAGES)})
    batches: dict[int, Duration] = field(default_factory=dict)


class Statistics:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()

    def ran(self, batch: Finished) -> None:
        with self._lock:
            counts = self._counts
            counts.executions += 1
            counts.last_inference_ms = int(1e3 * time.time())
            if not batch.failed:
                counts.inferences += batch.rows
                counts.batches.setdefault(batch.rows, Duration()).add(batch.ended_ns - batch.started_ns)

    def answered(self, phases_ns: Mapping[str, int]) -> None:
        """A request came to its end: `phases_ns` of PHASES and STAGES, with either success or fail."""
        with self._lock:
            for name, ns in phases_ns.items():
                self._counts.phases[name].add(ns)

    def read(self) -> Counts:
        """A copy that stands still."""
        with self._lock:
            counts = self._counts
            return Counts(
                counts.inferences,
                counts.executions,
                counts.last_inference_ms,
                {name: Duration(entry.count, entry.ns) for name, entry in counts.phases.items()},
                {rows: Duration(entry.count, entry.ns) for rows, entry in sorted(counts.batches.items())},
            )

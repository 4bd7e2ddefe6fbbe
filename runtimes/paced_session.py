"""A Session that takes as long as a slower device would: an emulated pace, never a measurement of that device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from edgekit.errors import UsageError
from edgekit.runtimes.session import Feeds, Session


class PacedSession(Session):
    """Wraps `inner` and stretches each run to `latency_ms`: it sleeps for what is left, and never runs faster than
    `inner` does. `overruns` counts the runs in which `inner` alone took longer. Closing it closes `inner`.

    Raises UsageError for a latency that is not a finite number from 0.
    """

    format: ClassVar[str] = "emulated-pace"
    is_emulated = True

    def __init__(
        self,
        inner: Session,
        latency_ms: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not 0 <= latency_ms < float("inf"):
            raise UsageError(f"a pace of {latency_ms} ms a run, allowed a finite number from 0")
        self.inner, self.latency_ms, self.overruns = inner, latency_ms, 0
        self._clock, self._sleep = clock, sleep
        super().__init__(inner.path, inner.inputs, inner.outputs, inner.options)

    def _load(self) -> None:
        """Nothing to open: `inner` is."""

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        start = self._clock()
        outputs = self.inner.run(dict(zip((spec.name for spec in self.inputs), arrays, strict=True)))
        left_s = self.latency_ms / 1e3 - (self._clock() - start)
        if left_s > 0:
            self._sleep(left_s)
        else:
            self.overruns += 1
        return [outputs[spec.name] for spec in self.outputs]

    def bare(self, feeds: Feeds) -> Callable[[], object]:
        return self.inner.bare(feeds)

    def _close(self) -> None:
        self.inner.close()

"""How long something takes, from the last times that it did."""

from __future__ import annotations

import math
import threading
from collections import deque

WINDOW = 64


class Durations:
    """The last 64 durations in ms, with `expected_ms` standing in until the first one. Safe from any thread."""

    def __init__(self, expected_ms: float = 0.0, window: int = WINDOW) -> None:
        self._expected_ms = expected_ms
        self._recent: deque[float] = deque(maxlen=window)
        self._lock = threading.Lock()

    def add(self, duration_ms: float) -> None:
        with self._lock:
            self._recent.append(duration_ms)

    def __len__(self) -> int:
        return len(self._recent)

    @property
    def median_ms(self) -> float:
        return self._quantile(0.5)

    @property
    def p95_ms(self) -> float:
        return self._quantile(0.95)

    @property
    def worst_ms(self) -> float:
        return self._quantile(1.0)

    def _quantile(self, share: float) -> float:
        with self._lock:
            values = sorted(self._recent)
        if not values:
            return self._expected_ms
        # Not interpolated: with few values the worst one seen is the safe guess.
        return values[min(len(values) - 1, math.ceil(share * (len(values) - 1)))]

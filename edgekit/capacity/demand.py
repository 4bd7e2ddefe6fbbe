"""What is asked of the servers: a latency objective, and requests over time."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekit.errors import DataError, UsageError

_OBJECTIVE = re.compile(r"p(?P<percent>[0-9]{1,2}(\.[0-9]+)?)=(?P<number>[0-9]*\.?[0-9]+)(?P<unit>us|ms|s)?", re.I)
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Objective:
    """`share` of the requests (0.99 for p99) are answered within `limit_ms`, refused ones counted as late."""

    share: float
    limit_ms: float

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 < self.limit_ms < float("inf")):
            raise UsageError(
                f"an objective of p{100 * self.share:g} within {self.limit_ms:g} ms, allowed a percentile between p0 "
                "and p100 and a time above 0",
                hint="like p99=200ms",
            )

    @classmethod
    def parse(cls, text: str) -> Objective:
        """`p99=200ms`, `p99.9=1s`, `p95=50` (ms). Raises UsageError."""
        match = _OBJECTIVE.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"--slo {text!r} is no objective", hint="like p99=200ms: a percentile and a time")
        return cls(float(match["percent"]) / 100, float(match["number"]) * _MS[(match["unit"] or "ms").lower()])

    def value_ms(self, latencies_ms: np.ndarray) -> float:
        """The percentile of float [n]; infinite entries are requests that got no answer. Infinite for n = 0.

        The nearest rank: the smallest entry that `share` of the entries do not exceed.
        """
        if not len(latencies_ms):
            return float("inf")
        rank = min(len(latencies_ms) - 1, int(np.ceil(self.share * len(latencies_ms) - 1e-9)) - 1)
        return float(np.partition(latencies_ms, rank)[rank])

    def __str__(self) -> str:
        return f"p{100 * self.share:g} <= {self.limit_ms:g} ms"


@dataclass(frozen=True)
class Arrivals:
    """When requests come, at a mean rate of one a second: `gaps_s` between them, mean 1. `at` scales them to a rate.

    One set of gaps for every rate (common random numbers) makes results at two rates comparable. `seed`: of gaps that
    were drawn, None for recorded ones.
    """

    gaps_s: np.ndarray
    name: str
    seed: int | None = None

    @classmethod
    def poisson(cls, count: int, seed: int = 0) -> Arrivals:
        """Independent devices, each with a rate of its own, together come near a Poisson process as their number grows
        (Palm and Khintchine: Cox and Smith, On the superposition of renewal processes, Biometrika 41, 1954)."""
        return cls(np.random.default_rng(seed).exponential(1.0, count), "poisson", seed)

    def again(self, number: int) -> Arrivals:
        """Another course of the same process, 0 being this one: drawn anew, or recorded ones from another moment on."""
        if number == 0:
            return self
        if self.seed is None:
            return replace(self, gaps_s=np.roll(self.gaps_s, number * len(self.gaps_s) // (number + 1)))
        drawn = np.random.default_rng((self.seed, number)).exponential(1.0, len(self.gaps_s))
        return replace(self, gaps_s=drawn)

    @classmethod
    def read(cls, path: Path) -> Arrivals:
        """A CSV file whose first column holds rising times in seconds; a header is skipped. Raises DataError."""
        try:
            rows = [row[0] for row in csv.reader(path.read_text(encoding="utf-8").splitlines()) if row]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot read the arrivals {path}: {error}", hint="a CSV file of times in seconds"
            ) from error
        try:
            times = np.array([float(cell) for cell in rows[1 if rows and not _is_number(rows[0]) else 0 :]])
        except ValueError as error:
            raise DataError(f"{path}: {error}", hint="the first column holds times in seconds") from error
        gaps = np.diff(times)
        if len(times) < 100 or not np.isfinite(times).all() or (gaps < 0).any() or times[-1] <= times[0]:
            raise DataError(
                f"{path} holds {len(times)} times, allowed 100 or more that rise",
                hint="one line a request: when it came, in seconds",
            )
        return cls(gaps / gaps.mean(), path.name)

    def at(self, rate_hz: float) -> np.ndarray:
        """Times in seconds, from 0 on, at a mean rate of `rate_hz`."""
        return np.cumsum(self.gaps_s) / rate_hz

    def __len__(self) -> int:
        return len(self.gaps_s)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

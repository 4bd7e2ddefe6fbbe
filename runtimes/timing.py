"""How long a session takes, beside the bare runtime in the same process, call by call."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgekit.devices.machine import this_machine
from edgekit.errors import UsageError
from edgekit.runtimes.host import isa, peak_memory_bytes
from edgekit.runtimes.session import Feeds, Session
from edgekit.tensors import DTYPES

WARMUP_WINDOW = 5
MAX_WARMUP_RUNS = 200
MAX_RUNS = 100_000


@dataclass(frozen=True)
class Timing:
    """`raw_p50_ms` is the bare runtime's median; `overhead_ratio` = p50_ms / raw_p50_ms.

    `overhead_us` is the median of what a call took longer than the bare call next to it, and lies between
    `overhead_low_us` and `overhead_high_us` with 95 % confidence: where these enclose 0, no overhead shows.
    `peak_memory_bytes` is the whole process's.
    """

    p50_ms: float
    p95_ms: float
    mean_ms: float
    raw_p50_ms: float
    raw_p95_ms: float
    overhead_ratio: float
    overhead_us: float
    overhead_low_us: float
    overhead_high_us: float
    runs: int
    threads: int
    isa: str
    peak_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def benchmark(
    session: Session, feeds: Feeds | None = None, *, runs: int = 100, limit_s: float = 60.0, warmup_s: float = 5.0
) -> Timing:
    """Session and bare runtime in turns, `runs` times each or until `limit_s` has passed (at least 3).

    `feeds` None takes noise from `example_feeds`. Which of the two goes first alternates, so that neither always finds
    the other's warm caches. Garbage collection waits meanwhile. Raises UsageError, InputError or SessionError.
    """
    if not 3 <= runs <= MAX_RUNS:
        raise UsageError(f"{runs} runs, allowed 3 to {MAX_RUNS}")
    feeds = example_feeds(session) if feeds is None else feeds

    def ours() -> object:
        return session.run(feeds)

    ours()  # checks the feeds before the runtime sees them
    bare = session.bare(feeds)
    warm_until_stable(ours, warmup_s)
    warm_until_stable(bare, warmup_s)
    own, raw = _interleave(ours, bare, runs, limit_s)
    p50, raw_p50 = float(np.median(own)), float(np.median(raw))
    low, high = median_interval(own - raw)
    return Timing(
        p50_ms=p50 * 1e3,
        p95_ms=float(np.percentile(own, 95)) * 1e3,
        mean_ms=float(own.mean()) * 1e3,
        raw_p50_ms=raw_p50 * 1e3,
        raw_p95_ms=float(np.percentile(raw, 95)) * 1e3,
        overhead_ratio=p50 / raw_p50,
        overhead_us=float(np.median(own - raw)) * 1e6,
        overhead_low_us=low * 1e6,
        overhead_high_us=high * 1e6,
        runs=len(own),
        threads=session.options.threads or this_machine().cores,
        isa=isa(),
        peak_memory_bytes=peak_memory_bytes(),
    )


def _interleave(
    ours: Callable[[], object], bare: Callable[[], object], runs: int, limit_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each call of each."""
    own: list[float] = []
    raw: list[float] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        deadline = time.perf_counter() + limit_s
        for run in range(runs):
            for is_ours in (True, False) if run % 2 == 0 else (False, True):
                seconds = seconds_of(ours if is_ours else bare)
                (own if is_ours else raw).append(seconds)
            if run >= 2 and time.perf_counter() > deadline:
                break
    finally:
        if collecting:
            gc.enable()
    return np.asarray(own), np.asarray(raw)


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % confidence of the median, from the order of [n] `values` alone: ranks n / 2 -+ 0.98 sqrt(n), the normal
    approximation of the binomial distribution of how many lie below it; all of them where they are few."""
    ordered, count = np.sort(values), len(values)
    rank = max(0, int(np.floor(count / 2 - 0.98 * np.sqrt(count))))
    return float(ordered[rank]), float(ordered[count - 1 - rank])


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) * 1e-9


def warm_until_stable(call: Callable[[], object], limit_s: float) -> int:
    """Runs `call` until a window of 5 is no faster than 0.98 of the best before it, or a bound is met; returns runs."""
    best = np.inf
    deadline = time.perf_counter() + limit_s
    window: list[float] = []
    for run in range(1, MAX_WARMUP_RUNS + 1):
        window.append(seconds_of(call))
        if time.perf_counter() > deadline:
            return run
        if len(window) == WARMUP_WINDOW:
            median = float(np.median(window))
            if median > 0.98 * best:
                return run
            best, window = min(best, median), []
    return MAX_WARMUP_RUNS


def example_feeds(session: Session, *, sizes: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs that fit: standard normal floats, integers of 0 and 1 (valid token ids and masks everywhere).

    `sizes` gives dynamic dimensions by name; the others are 1. Raises UsageError for a name that no input has.
    """
    sizes = dict(sizes or {})
    named = {size for spec in session.inputs for size in spec.shape if isinstance(size, str)}
    unknown = sizes.keys() - named
    if unknown:
        raise UsageError(f"no dynamic dimension {sorted(unknown)}, allowed {sorted(named)}")
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in session.inputs:
        shape = [size if isinstance(size, int) else sizes.get(size, 1) for size in spec.shape]
        dtype = DTYPES[spec.dtype]
        values = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[spec.name] = np.asarray(values, dtype)
    return feeds

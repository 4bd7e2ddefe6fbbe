from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgekit.devices.machine import this_machine
from edgekit.errors import InputError, UsageError
from edgekit.runtimes.session import Feeds, Session, SessionOptions
from edgekit.runtimes.timing import benchmark, example_feeds, median_interval, warm_until_stable
from edgekit.tensors import TensorSpec


class SlowSession(Session):
    """Its runtime busily waits; around it the contract's own checks."""

    format = "slow"
    seconds = 0.0005

    def _load(self) -> None:
        self.calls: list[str] = []
        self.collecting: set[bool] = set()

    def _wait(self, who: str) -> None:
        self.calls.append(who)
        self.collecting.add(gc.isenabled())
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        self._wait("ours")
        return [arrays[0]]

    def bare(self, feeds: Feeds) -> Callable[[], object]:
        return lambda: self._wait("bare")


@pytest.fixture
def session(tmp_path: Path) -> SlowSession:
    (tmp_path / "a.slow").write_bytes(b"")
    inputs = [TensorSpec("x", "float32", (1, "length", 2)), TensorSpec("ids", "int64", (1, "length"))]
    return SlowSession(tmp_path / "a.slow", inputs, [inputs[0]], SessionOptions(threads=2))


def test_session_and_bare_runtime_are_timed_in_turns_and_alternate(session):
    timing = benchmark(session, runs=20, warmup_s=0.0)
    timed = session.calls[-40:]
    assert timed.count("ours") == timed.count("bare") == 20
    assert timed[:8] == ["ours", "bare", "bare", "ours"] * 2
    assert session.collecting >= {False}
    assert gc.isenabled()
    assert (timing.runs, timing.threads) == (20, 2)


def test_timing_holds_consistent_numbers(session):
    timing = benchmark(session, runs=10, warmup_s=0.0)
    assert timing.raw_p50_ms >= 0.5
    assert timing.p50_ms <= timing.p95_ms
    assert timing.overhead_ratio == pytest.approx(timing.p50_ms / timing.raw_p50_ms)
    assert timing.isa.startswith(this_machine().arch)
    assert timing.peak_memory_bytes > 1 << 20
    assert set(timing.to_json()) >= {"p50_ms", "p95_ms", "raw_p50_ms", "overhead_ratio", "threads", "isa"}


def test_the_interval_of_a_median_is_that_of_the_ranks_around_it():
    assert median_interval(np.arange(100)[::-1] * 1.0) == (40.0, 59.0)  # 50 -+ 9.8
    assert median_interval(np.asarray([3.0, 1.0, 2.0])) == (1.0, 3.0)
    normal = np.random.default_rng(0).standard_normal((2000, 61))
    held = np.mean([low <= 0 <= high for low, high in map(median_interval, normal)])
    assert 0.93 < held < 0.99


def test_an_overhead_lies_within_its_interval(session):
    timing = benchmark(session, runs=15, warmup_s=0.0)
    assert timing.overhead_low_us <= timing.overhead_us <= timing.overhead_high_us


def test_time_limit_ends_a_benchmark_after_three_runs(session):
    assert benchmark(session, runs=1000, limit_s=0.0, warmup_s=0.0).runs == 3


def test_feeds_that_do_not_fit_and_senseless_runs_are_refused(session):
    with pytest.raises(InputError):
        benchmark(session, {"x": np.zeros((1, 2), np.float32)}, runs=5)
    for runs in (0, 2, -5, 10**9):
        with pytest.raises(UsageError, match="allowed 3 to"):
            benchmark(session, runs=runs)


def test_warm_up_is_bounded():
    assert warm_until_stable(lambda: None, 0.0) == 1
    calls = iter(range(10**6))

    def ever_faster() -> None:
        time.sleep(max(0.0, 0.0004 - 0.00001 * next(calls)))

    assert warm_until_stable(ever_faster, 60.0) <= 200


def test_example_feeds_fit_the_session_and_repeat(session):
    feeds = example_feeds(session, sizes={"length": 7})
    assert feeds["x"].shape == (1, 7, 2)
    assert set(np.unique(feeds["ids"])) <= {0, 1}
    session.run(feeds)
    np.testing.assert_array_equal(feeds["x"], example_feeds(session, sizes={"length": 7})["x"])
    with pytest.raises(UsageError, match="no dynamic dimension"):
        example_feeds(session, sizes={"width": 7})

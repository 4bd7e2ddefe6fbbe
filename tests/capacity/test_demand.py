from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.capacity.demand import Arrivals, Objective
from edgekit.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("text", "share", "limit_ms"),
    [("p99=200ms", 0.99, 200.0), ("p99.9=1s", 0.999, 1000.0), ("P95=50", 0.95, 50.0), ("p50=250us", 0.5, 0.25)],
)
def test_an_objective_is_read_with_its_unit(text: str, share: float, limit_ms: float) -> None:
    found = Objective.parse(text)
    assert found.share == pytest.approx(share)
    assert found.limit_ms == pytest.approx(limit_ms)


@pytest.mark.parametrize("text", ["", "99=200ms", "p99", "p99=", "p99=200kg", "p=1ms", "p0=1ms", "p99=0ms", "p999=1s"])
def test_what_is_no_objective_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Objective.parse(text)
    assert "p99=200ms" in caught.value.hint


def test_a_percentile_is_the_nearest_rank() -> None:
    values = np.arange(1.0, 101.0)
    for percent in (1, 50, 95, 99):
        assert Objective(percent / 100, 1.0).value_ms(values[::-1]) == percent


def test_requests_without_an_answer_count_as_late() -> None:
    latencies = np.array([1.0] * 98 + [np.inf] * 2)
    assert Objective(0.98, 1.0).value_ms(latencies) == 1.0
    assert Objective(0.99, 1.0).value_ms(latencies) == np.inf
    assert Objective(0.99, 1.0).value_ms(np.array([])) == np.inf


def test_poisson_arrivals_have_their_rate_their_spread_and_their_seed() -> None:
    count, rate = 20_000, 50.0
    times = Arrivals.poisson(count, seed=3).at(rate)
    gaps = np.diff(times)
    # The mean of n exponential gaps deviates by 1 / sqrt(n) of it, their variation by sqrt(2 / n): five deviations.
    assert gaps.mean() * rate == pytest.approx(1, abs=5 / np.sqrt(count))
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=5 * np.sqrt(2 / count))
    assert np.array_equal(times, Arrivals.poisson(count, seed=3).at(rate))
    assert not np.array_equal(times, Arrivals.poisson(count, seed=4).at(rate))


def test_a_trace_keeps_its_shape_at_any_rate(tmp_path: Path) -> None:
    bursts = np.concatenate([np.arange(10) * 0.001 + second for second in range(20)])
    path = tmp_path / "bursts.csv"
    path.write_text("time\n" + "\n".join(map(str, bursts)) + "\n")
    found = Arrivals.read(path)
    gaps = np.diff(found.at(100.0))
    assert len(found) == len(bursts) - 1
    assert found.at(100.0)[-1] == pytest.approx(len(found) / 100)
    assert gaps.max() / gaps.min() == pytest.approx(0.991 / 0.001)


@pytest.mark.parametrize("text", ["", "time\n1\n2\n", "\n".join(str(-x) for x in range(200)), "a\nb\nc\n"])
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"trace\.csv"):
        Arrivals.read(path)
    with pytest.raises(DataError, match="missing"):
        Arrivals.read(tmp_path / "missing.csv")

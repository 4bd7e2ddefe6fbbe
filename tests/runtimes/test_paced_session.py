from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import InputError, SessionError, UsageError
from edgekit.runtimes.paced_session import PacedSession
from edgekit.runtimes.session import Session
from edgekit.tensors import TensorSpec


class Twice(Session):
    """Takes `spend` seconds of the clock."""

    format = "twice"
    clock, spend = 0.0, 0.0

    def _load(self) -> None:
        pass

    def _run(self, arrays):
        type(self).clock += self.spend
        return [2 * arrays[0]]

    def bare(self, feeds):
        return lambda: None


@pytest.fixture
def inner(tmp_path: Path) -> Twice:
    (tmp_path / "twice").touch()
    Twice.clock = 0.0
    return Twice(tmp_path / "twice", [TensorSpec("x", "float32", (2,))], [TensorSpec("y", "float32", (2,))])


def pace(inner: Twice, latency_ms: float) -> PacedSession:
    def sleep(seconds: float) -> None:
        Twice.clock += seconds

    return PacedSession(inner, latency_ms, clock=lambda: Twice.clock, sleep=sleep)


@pytest.mark.parametrize(("spend", "overruns"), [(0.0, 0), (0.04, 0), (0.15, 1)])
def test_a_run_takes_the_pace_or_what_it_takes(inner: Twice, spend: float, overruns: int) -> None:
    inner.spend = spend
    session = pace(inner, 100.0)
    outputs = session.run({"x": np.ones(2, np.float32)})
    assert Twice.clock == pytest.approx(max(0.1, spend))
    assert session.overruns == overruns
    np.testing.assert_array_equal(outputs["y"], [2, 2])


def test_it_says_that_it_is_emulated_and_keeps_the_interface(inner: Twice) -> None:
    session = pace(inner, 5.0)
    assert session.is_emulated and session.format == "emulated-pace"
    assert (session.inputs, session.outputs) == (inner.inputs, inner.outputs)
    with pytest.raises(InputError):
        session.run({"x": np.ones(3, np.float32)})


def test_closing_it_closes_what_it_paces(inner: Twice) -> None:
    pace(inner, 5.0).close()
    with pytest.raises(SessionError):
        inner.run({"x": np.ones(2, np.float32)})


@pytest.mark.parametrize("latency_ms", [-1.0, float("nan"), float("inf")])
def test_a_pace_that_cannot_be_is_a_usage_error(inner: Twice, latency_ms: float) -> None:
    with pytest.raises(UsageError):
        pace(inner, latency_ms)

from __future__ import annotations

import math

import pytest

from edgekit.capacity.processor import CREDIT_S, Processor


def _run_down(processor: Processor) -> list[tuple[float, str]]:
    """When each thing was done."""
    found = []
    while (now := processor.next_s()) < math.inf:
        own, batches = processor.done(now)
        found += [(now, str(name)) for name in (*own, *batches)]
    return found


def test_nothing_at_work_is_never_done() -> None:
    assert Processor(1, True).next_s() == math.inf


def test_own_work_is_done_in_turn() -> None:
    processor = Processor(1, True)
    processor.add_own("a", 0.002, 1.0)
    processor.add_own("b", 0.003, 1.0)
    assert _run_down(processor) == [(pytest.approx(1.002), "a"), (pytest.approx(1.005), "b")]


def test_short_own_work_goes_first_and_the_batch_loses_it() -> None:
    processor = Processor(1, True)
    processor.add_batch("batch", 0.010, 0.0)
    processor.add_own("request", 0.001, 0.004)
    assert _run_down(processor) == [(pytest.approx(0.005), "request"), (pytest.approx(0.011), "batch")]


def test_with_a_core_to_spare_neither_waits_for_the_other() -> None:
    for processor in (Processor(1, False), Processor(2, True)):
        processor.add_batch("batch", 0.010, 0.0)
        processor.add_own("request", 0.004, 0.0)
        assert _run_down(processor) == [(pytest.approx(0.004), "request"), (pytest.approx(0.010), "batch")]


def test_long_own_work_takes_turns_with_the_batch() -> None:
    processor = Processor(1, True)
    processor.add_batch("batch", 0.010, 0.0)
    processor.add_own("requests", 1.0, 0.0)
    ends = {name: when for when, name in _run_down(processor)}
    # While its credit lasts own work runs alone, for twice the credit (half of it is its fair share); then both share.
    assert ends["batch"] == pytest.approx(2 * CREDIT_S + 2 * 0.010)
    assert ends["requests"] == pytest.approx(1.010)


def test_no_work_is_lost_or_made_whatever_comes_when() -> None:
    processor = Processor(1, True)
    processor.add_batch("batch", 0.02, 0.0)
    for step in range(10):
        while processor.next_s() <= 0.0015 * step:
            processor.done(processor.next_s())
        processor.add_own(f"own {step}", 0.002, 0.0015 * step)
    # Both are at work without a pause on one core: the last thing is done after all of the work.
    assert max(when for when, _ in _run_down(processor)) == pytest.approx(0.04)


def test_two_workers_share_what_own_work_takes() -> None:
    processor = Processor(2, True)
    for name in ("a", "b"):
        processor.add_batch(name, 0.010, 0.0)
    processor.add_own("request", 0.002, 0.0)
    ends = {name: when for when, name in _run_down(processor)}
    assert ends["a"] == ends["b"] == pytest.approx(0.011)


def test_own_work_can_go_ahead_of_what_waits_but_not_of_what_has_begun() -> None:
    processor = Processor(1, True)
    for name in ("begun", "waits", "last"):
        processor.add_own(name, 0.001, 0.0)
    processor.add_own("second", 0.001, 0.0005, behind=0)
    processor.add_own("end", 0.001, 0.0005, behind=9)
    assert [name for _, name in _run_down(processor)] == ["begun", "second", "waits", "last", "end"]

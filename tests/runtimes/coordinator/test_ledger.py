"""What an Answer says of its time."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.runtimes.coordinator.ledger import Ledger


@pytest.fixture
def ledger(clock) -> Ledger:
    return Ledger(clock, clock.now(), "1", "offload", deadline=clock.now() + 0.06)


def test_an_answer_behind_its_deadline_says_by_how_much(clock, ledger: Ledger) -> None:
    clock.advance(0.0686)
    answer = ledger.answer({"y": np.zeros(1)}, "edge", "offload")
    assert answer.late_ms == answer.to_json()["late_ms"] == pytest.approx(8.6)
    assert "late by 8.6 ms" in answer.summary()


def test_an_answer_in_time_is_not_called_late(clock, ledger: Ledger) -> None:
    clock.advance(0.0599)
    answer = ledger.answer({"y": np.zeros(1)}, "edge", "offload")
    assert answer.late_ms == 0
    assert "late" not in answer.summary()


def test_the_stages_shown_add_up_to_the_whole(clock, ledger: Ledger) -> None:
    clock.advance(0.0174)
    ledger.note(encode=0.6, network=2.3, queue=0.1, compute=6.9)
    summary = ledger.answer({"y": np.zeros(1)}, "edge", "split").summary()
    assert "17.4 ms (encode 0.6, network 2.3, queue 0.1, compute 6.9, other 7.5)" in summary


def test_stages_that_overlap_leave_nothing_over(clock, ledger: Ledger) -> None:
    clock.advance(0.010)
    ledger.note(local=9.0, network=8.0)
    assert "other" not in ledger.answer({"y": np.zeros(1)}, "device", "local").summary()

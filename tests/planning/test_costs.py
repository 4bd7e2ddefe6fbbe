from __future__ import annotations

import pytest

from edgekit.errors import UsageError
from edgekit.planning.costs import MeasuredCosts, names_of
from edgekit.planning.plan import Way


def test_names_are_those_of_parts_and_codecs(whole: Way, split: Way) -> None:
    assert names_of([whole, split]) == ["decode:c", "encode:c", "head", "main", "tail"]


def test_nothing_measured_changes_nothing(whole: Way, split: Way) -> None:
    assert MeasuredCosts((whole, split)).corrected() == (whole, split)


def test_the_first_measurement_counts_in_full_and_energy_follows(split: Way) -> None:
    costs = MeasuredCosts((split,))
    costs.observe("head", 9.0)
    costs.observe("tail", 2.0)
    corrected = costs.corrected()[0]
    assert [stage.latency_ms for stage in corrected.stages] == pytest.approx([9.0, 2.0])
    assert corrected.stages[0].energy_mj == pytest.approx(90.0)


def test_repeated_measurements_settle_and_one_stall_does_not_move_them(split: Way) -> None:
    costs = MeasuredCosts((split,))
    for _ in range(30):
        costs.observe("head", 12.0)
    assert costs.ratio("head") == pytest.approx(2.0)
    costs.observe("head", 12_000.0)
    assert costs.ratio("head") < 2.0 * 1.4
    for _ in range(30):
        costs.observe("head", 6.0)
    assert costs.ratio("head") == pytest.approx(1.0, rel=0.02)


def test_what_was_not_measured_follows_its_tier(whole: Way, split: Way) -> None:
    costs = MeasuredCosts((whole, split))
    costs.observe("head", 12.0)
    corrected = {way.variant: way for way in costs.corrected()}
    assert corrected["whole"].stages[0].latency_ms == pytest.approx(60.0)
    assert corrected["split"].crossings[0].encode_ms == pytest.approx(2.0)
    assert corrected["split"].crossings[0].decode_ms == pytest.approx(0.5)
    assert corrected["split"].stages[1].latency_ms == pytest.approx(4.0)


@pytest.mark.parametrize(("name", "measured_ms"), [("nobody", 1.0), ("head", 0.0), ("head", float("nan"))])
def test_other_names_and_times_are_refused(split: Way, name: str, measured_ms: float) -> None:
    with pytest.raises(UsageError, match="allowed"):
        MeasuredCosts((split,)).observe(name, measured_ms)

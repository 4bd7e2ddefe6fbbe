from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.parity import Limits, Quality
from edgekit.quantizers.sensitivity import Sensitivity
from edgekit.suspects import MAX_FALLBACKS, Suspects

LIMITS = Limits(max_drop=1.0)
BEFORE = Quality(sqnr_db=10.0, drop=8.0, cosine=0.92, samples=8, reference="float model")


def suspects(count: int = 20) -> Suspects:
    return Suspects.ranked([Sensitivity(f"layer_{index}", 20.0, 1.0) for index in range(count)], BEFORE)


def at(drop: float, sqnr_db: float = 10.0) -> Quality:
    return replace(BEFORE, drop=drop, sqnr_db=sqnr_db)


def test_those_that_make_much_noise_for_little_work_are_blamed_first() -> None:
    rows = [Sensitivity("quiet", 40.0, 1.0), Sensitivity("large", 20.0, 10.0), Sensitivity("small", 20.0, 1.0)]
    assert [row.layer for row in Suspects.ranked(rows, BEFORE).rows] == ["small", "large", "quiet"]


def test_the_number_in_float_doubles_and_never_takes_in_all_layers() -> None:
    ranked, kept, sizes = suspects(12), 0, []
    while blamed := ranked.blamed(kept, kept):
        kept += len(blamed)
        sizes.append(kept)
    assert sizes == [1, 2, 4, 8]
    assert suspects(1).blamed(0, 0) == ()


def test_what_brings_nothing_is_given_up_and_the_numbers_are_told() -> None:
    assert suspects().given_up(2, at(drop=7.9), LIMITS) == (
        f"2 layers in float took the drop from 8.00 to 7.90 points, and {MAX_FALLBACKS - 2} more would not do"
    )
    assert suspects().given_up(2, at(drop=9.0), LIMITS)


@pytest.mark.parametrize("kept", [0, 1])
def test_nothing_is_given_up_after_one_layer(kept: int) -> None:
    assert suspects().given_up(kept, at(drop=9.0), LIMITS) == ""


def test_what_may_yet_reach_the_limit_goes_on() -> None:
    # 2 of 8 equally noisy layers took 0.6 of the 7 points: 6 more may take four times 1.8.
    assert suspects().given_up(2, at(drop=7.4), LIMITS) == ""
    assert suspects().given_up(4, at(drop=0.5), LIMITS) == "", "within this limit already"
    assert suspects().given_up(2, at(drop=float("nan")), LIMITS) == ""


def test_layers_that_are_noisier_than_those_in_float_are_waited_for() -> None:
    loud = [Sensitivity("small", 20.0, 0.01), Sensitivity("other", 20.0, 0.01), Sensitivity("loud", 0.0, 100.0)]
    quiet = [Sensitivity(f"layer_{index}", 40.0, 1000.0) for index in range(9)]
    assert Suspects.ranked([*loud, *quiet], BEFORE).given_up(2, at(drop=7.9), LIMITS) == ""


def test_a_limit_in_decibels_counts_the_noise() -> None:
    limits = Limits(max_drop=None, min_sqnr_db=20.0)
    assert "SQNR from 10.0 to 10.1 dB" in suspects().given_up(2, at(8.0, 10.1), limits)
    # Noise of 0.1, of which 0.08 have to go: 0.0206 went with 2 layers of 8.
    assert suspects().given_up(2, at(8.0, 11.0), limits) == ""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.report.metrics import cosine, sqnr_db, top1_agreement, wilson_interval


def test_sqnr_of_a_tenth_of_the_signal_is_twenty_decibels():
    signal = np.ones((2, 3), np.float32)
    assert sqnr_db(signal, signal * np.float32(1.1)) == pytest.approx(20.0, abs=1e-4)
    assert sqnr_db(signal, signal) == math.inf
    assert sqnr_db(np.zeros(3), np.ones(3)) == -math.inf


def test_sqnr_of_eight_bits_is_what_theory_says():
    """A uniform signal in n bits: 6.02 n dB; 65,536 samples leave a standard error under 0.05 dB."""
    signal = np.random.default_rng(0).uniform(-1, 1, 65_536)
    step = 2 / 256
    assert sqnr_db(signal, np.round(signal / step) * step) == pytest.approx(6.0206 * 8, abs=0.15)


def test_integers_do_not_overflow():
    assert sqnr_db(np.array([200], np.uint8), np.array([201], np.uint8)) == pytest.approx(20 * math.log10(200))


def test_agreement_and_cosine_of_known_rows():
    reference = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert top1_agreement(reference, reference[::-1]) == 0.0
    assert cosine(reference, reference[::-1]) == 0.0
    assert cosine(reference, -reference) == pytest.approx(-1.0)
    assert cosine(reference, np.zeros((2, 2))) == 0.0


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_interval_holds_the_share_and_stays_in_range(count, share):
    low, high = wilson_interval(share, count)
    assert 0.0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1.0


def test_wilson_interval_matches_the_published_example():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662 (without continuity correction)."""
    low, high = wilson_interval(81 / 263, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(0.0, 0) == (0.0, 1.0)

from __future__ import annotations

import gc

import pytest

from edgekit.exporters.garbage import SELDOM, seldom_collected


def test_the_thresholds_are_as_before_also_after_a_failure() -> None:
    before = gc.get_threshold()
    with pytest.raises(RuntimeError), seldom_collected():
        assert gc.get_threshold() == (SELDOM, *before[1:])
        raise RuntimeError
    assert gc.get_threshold() == before

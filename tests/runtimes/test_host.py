from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from edgekit.runtimes.host import collect_all_rarely


@pytest.fixture
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def test_full_collections_become_rare_and_those_of_young_objects_stay(thresholds: tuple[int, int, int]) -> None:
    gc.set_threshold(700, 10, 10)
    collect_all_rarely()
    assert gc.isenabled() and gc.get_threshold() == (700, 10, 100)

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from edgekit.devices.machine import this_machine
from edgekit.runtimes.host import collect_all_rarely, isa, peak_memory_bytes


def test_isa_names_the_architecture_first():
    machine = this_machine()
    assert isa().split() == [machine.arch, *machine.isa]


def test_peak_memory_comes_from_the_kernel_or_from_getrusage(tmp_path):
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t   2048 kB\n")
    assert peak_memory_bytes(tmp_path / "status") == 2048 * 1024
    assert peak_memory_bytes(tmp_path / "missing") > 1 << 20


@pytest.fixture
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def test_full_collections_become_rare_and_those_of_young_objects_stay(thresholds: tuple[int, int, int]) -> None:
    gc.set_threshold(700, 10, 10)
    collect_all_rarely()
    assert gc.isenabled() and gc.get_threshold() == (700, 10, 100)

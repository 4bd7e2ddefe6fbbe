from __future__ import annotations

from edgekit.devices.machine import this_machine
from edgekit.runtimes.host import isa, peak_memory_bytes


def test_isa_names_the_architecture_first():
    machine = this_machine()
    assert isa().split() == [machine.arch, *machine.isa]


def test_peak_memory_comes_from_the_kernel_or_from_getrusage(tmp_path):
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t   2048 kB\n")
    assert peak_memory_bytes(tmp_path / "status") == 2048 * 1024
    assert peak_memory_bytes(tmp_path / "missing") > 1 << 20

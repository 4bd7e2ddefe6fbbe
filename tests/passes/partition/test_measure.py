from __future__ import annotations

from pathlib import Path

from edgekit.devices.device import load_device
from edgekit.model import Model
from edgekit.passes.partition.candidates import find_cut
from edgekit.passes.partition.measure import measure_cuts


def test_both_sides_of_each_cut_are_timed_under_its_name(fashion: Model, tmp_path: Path) -> None:
    wanted = [find_cut(fashion, "features.0")]
    times = measure_cuts(fashion, wanted, tmp_path, load_device("x86-server"))
    assert list(times) == ["features.0"]
    assert all(head > 0 and tail > 0 for head, tail in times.values())
    assert len(list(tmp_path.rglob("*.onnx"))) == 2

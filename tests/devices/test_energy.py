from dataclasses import replace

import pytest

from edgekit.devices.device import load_device
from edgekit.devices.energy import energy

PI_4 = load_device("raspberry-pi-4")


def test_energy_is_power_times_time():
    result = energy(10.0, PI_4)
    assert result is not None
    assert result.total_mj == pytest.approx(66.0)
    assert result.above_idle_mj == pytest.approx(36.0)
    assert not result.estimated


def test_an_estimated_power_marks_the_energy():
    result = energy(1.0, load_device("pixel-8"))
    assert result is not None and result.estimated


def test_without_a_load_figure_there_is_no_energy():
    assert energy(1.0, replace(PI_4, power_w={})) is None
    alone = energy(1.0, replace(PI_4, power_w={"load": 5.0}))
    assert alone is not None and alone.above_idle_mj is None

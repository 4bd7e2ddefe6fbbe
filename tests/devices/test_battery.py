from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.devices.battery import Battery, BatterySaver, read_battery
from edgekit.errors import UsageError


def supply(folder: Path, name: str, **files: str) -> None:
    (folder / name).mkdir()
    for file, content in files.items():
        (folder / name / file).write_text(content + "\n")


def test_the_emptiest_battery_of_the_machine_counts(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="1")
    supply(tmp_path, "BAT0", type="Battery", capacity="80", status="Discharging")
    supply(tmp_path, "BAT1", type="Battery", capacity="15", status="Discharging", scope="System")
    supply(tmp_path, "mouse", type="Battery", capacity="3", status="Discharging", scope="Device")
    assert read_battery(tmp_path) == Battery(0.15)


def test_what_cannot_be_read_is_no_battery(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    supply(tmp_path, "BAT1", type="Battery", capacity="full?", status="Full")
    assert read_battery(tmp_path) is None
    assert read_battery(tmp_path / "nothing") is None


def test_mains_are_told(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", capacity="5", status="Charging")
    assert read_battery(tmp_path) == Battery(0.05, is_charging=True)


def test_saving_begins_below_the_low_mark_and_ends_at_the_high_one() -> None:
    saver = BatterySaver(low=0.2, high=0.3)
    levels = [0.5, 0.21, 0.19, 0.25, 0.29, 0.3, 0.25]
    assert [saver.look(Battery(level)) for level in levels] == [False, False, True, True, True, False, False]


def test_nothing_is_saved_on_mains_or_without_a_battery() -> None:
    assert not BatterySaver().look(Battery(0.05, is_charging=True))
    assert not BatterySaver().look(None)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_charge_outside_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="allowed 0 to 1"):
        Battery(share)

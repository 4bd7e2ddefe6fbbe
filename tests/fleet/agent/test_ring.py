"""Windows on the disk: in order, within bounds, over restarts and power cuts."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from edgekit.errors import OutputError
from edgekit.fleet.agent import ring as ring_module
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.ring import Ring
from edgekit.fleet.protocol.windows import Window
from tests.fleet.agent.volume import CuttingDisk, PowerCut, QuickDisk, all_survivors

WINDOW = Window(sequence=0, started_at=1e9, seconds=60.0, digest="a" * 64, answered=3, latency={12: 2, -3: 1})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home", QuickDisk())
    home.make()
    return home


def sequences(ring: Ring, count: int = 10_000) -> list[int]:
    return [window.sequence for window in ring.oldest(count)]


def test_windows_are_numbered_and_come_back_as_they_were_in_order(home: Home) -> None:
    ring = Ring(home)
    written = [ring.append(WINDOW) for _ in range(150)]
    assert sequences(ring, 64) == list(range(64))
    assert Ring(home).oldest(1000) == written
    ring.taken(63)
    assert sequences(ring, 64) == list(range(64, 128))


def test_what_was_taken_goes_and_its_numbers_never_come_back(home: Home) -> None:
    ring = Ring(home)
    for _ in range(100):
        ring.append(WINDOW)
    ring.taken(99)
    assert sequences(ring) == [] and len(list(home.windows.iterdir())) == 1
    assert Ring(home).append(WINDOW).sequence == 100


def test_who_looks_from_outside_sees_what_was_taken_when_the_last_window_came(home: Home) -> None:
    ring = Ring(home)
    for _ in range(10):
        ring.append(WINDOW)
    ring.taken(9)
    ring.append(WINDOW)
    assert Ring(home).describe()["waiting"] == 1
    assert sequences(Ring(home)) == [10]  # and a restart does not send the others again


def test_numbers_go_on_where_a_new_file_was_begun_and_nothing_came_into_it(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Ring(home)
    for _ in range(64):
        ring.append(WINDOW)
    ring.taken(63)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(home.disk, "append", full)
    with pytest.raises(OutputError):
        ring.append(WINDOW)
    monkeypatch.undo()
    assert Ring(home).append(WINDOW).sequence == 64


def test_numbers_go_on_behind_what_the_fleet_has_where_the_folder_was_lost(home: Home) -> None:
    ring = Ring(home)
    ring.append(WINDOW)
    for path in home.windows.iterdir():
        path.unlink()
    ring.taken(41)
    assert ring.append(WINDOW).sequence == 42


def test_what_the_fleet_has_is_not_counted_as_lost(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "SEGMENT_WINDOWS", 8)
    ring = Ring(home, most_windows=16)
    for _ in range(10):
        ring.append(WINDOW)
    ring.taken(4)
    while len(ring.oldest(100)) and ring.oldest(1)[0].sequence == 5:
        ring.append(WINDOW)
    assert ring.dropped == 3, "5 to 7; 0 to 4 were taken"


def test_offline_for_ever_the_oldest_go_and_are_counted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "SEGMENT_WINDOWS", 8)
    ring = Ring(home, most_windows=40)
    for _ in range(1000):
        ring.append(WINDOW)
    left = sequences(ring)
    assert 32 <= len(left) <= 40 and left == list(range(1000 - len(left), 1000))
    assert ring.dropped == 1000 - len(left)
    again = Ring(home, most_windows=40)
    assert again.dropped == ring.dropped and sequences(again) == left


def test_bytes_are_bounded_too(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "SEGMENT_BYTES", 2000)
    ring = Ring(home, most_bytes=10_000)
    for _ in range(300):
        ring.append(WINDOW)
        assert sum(path.stat().st_size for path in home.windows.iterdir()) <= 10_000
    assert 5 < len(sequences(ring)) < 300


def test_tear_and_rot_cost_what_they_touch(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "SEGMENT_WINDOWS", 4)
    ring = Ring(home)
    for _ in range(10):
        ring.append(WINDOW)
    first, _, last = sorted(home.windows.iterdir())
    last.write_bytes(last.read_bytes()[:-20])
    first.write_bytes(first.read_bytes().replace(b'"answered":3', b'"answered":4', 1))
    again = Ring(home)
    assert sequences(again) == [4, 5, 6, 7, 8]
    assert again.append(WINDOW).sequence == 9
    assert sequences(Ring(home)) == [4, 5, 6, 7, 8, 9]


def test_full_disk_costs_the_window_and_nothing_else(home: Home) -> None:
    ring = Ring(home)
    ring.append(WINDOW)
    disk = CuttingDisk(home.path, 0, fail=lambda: OSError(errno.ENOSPC, "No space left on device"))
    ring._disk = disk
    with pytest.raises(OutputError, match="no space left"):
        ring.append(WINDOW)
    disk.cut = None
    assert ring.append(WINDOW).sequence == 1
    assert sequences(Ring(home)) == [0, 1]


def test_power_cut_at_every_step_never_gives_a_number_twice_nor_loses_what_was_offered(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "SEGMENT_WINDOWS", 3)
    offered: list[int] = []
    taken = -1

    def run(cut: int | None) -> CuttingDisk:
        nonlocal taken
        path = tmp_path / "run"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(home.path, path)
        disk = CuttingDisk(path, cut)
        offered.clear()
        taken = -1
        try:
            ring = Ring(Home(path, disk), most_windows=9)
            for _ in range(14):
                ring.append(WINDOW)
                offered[:] = sequences(ring)
                if len(offered) > 4:
                    taken = offered[2]
                    ring.taken(taken)
        except PowerCut:
            pass
        return disk

    for path in all_survivors(run, tmp_path / "after"):
        again = Ring(Home(path, QuickDisk()), most_windows=9)
        found = sequences(again)
        assert found == sorted(set(found))
        assert {one for one in offered if one > taken} - set(found) <= set(range(max(offered, default=0) - 8))
        assert again.append(WINDOW).sequence > max(offered, default=-1)

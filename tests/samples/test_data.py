from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgekit.errors import DataError
from edgekit.zoo.photographs import CALIBRATION, HELD_OUT, photograph
from samples import data
from samples.data import fetch_debian, photographs, split_photographs


def test_without_apt_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="apt-get is not on this machine") as caught:
        fetch_debian("dataset-fashion-mnist", tmp_path)
    assert str(tmp_path / "dataset-fashion-mnist") in caught.value.hint


def test_a_failed_fetch_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package nothing")

    monkeypatch.setattr(data.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(data.subprocess, "run", fail)
    with pytest.raises(DataError, match="Unable to locate package nothing"):
        fetch_debian("nothing", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_unpacked_already_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(data.shutil, "which", lambda name: None)
    assert fetch_debian("here", tmp_path) == tmp_path / "here"


def test_photographs_are_split_by_subject() -> None:
    pytest.importorskip("skimage")
    paths = [photograph(name) for name in (*CALIBRATION, *HELD_OUT)]
    stamps = [Path(f"/stamps/{name}.png") for name in ("cat", "cat2", "cat_3", "dog", "dog1", "elk", "owl", "fox")]
    calibration, held_out = split_photographs(paths + stamps)
    assert sorted(calibration + held_out) == sorted(paths + stamps)
    assert [path for path in calibration if path in paths] == [photograph(name) for name in CALIBRATION]
    sides = {path.stem: path in calibration for path in stamps}
    assert sides["cat"] == sides["cat2"] == sides["cat_3"]
    assert sides["dog"] == sides["dog1"]


def test_the_photographs_of_the_packages_are_there() -> None:
    try:
        paths = photographs()
    except DataError as error:
        pytest.skip(f"a photograph package cannot be had here: {error.message}")
    assert len(paths) == len(set(paths)) >= 120
    assert all(path.is_file() for path in paths)
    calibration, held_out = split_photographs(paths)
    assert len(held_out) >= 90
    assert len(calibration) >= 30

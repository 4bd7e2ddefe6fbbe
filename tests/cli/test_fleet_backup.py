"""`edgekit fleet backup` and `edgekit fleet restore`, over a fleet with something in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

pytest.importorskip("sqlalchemy")

from edgekit.fleet.protocol.people import PersonOrder
from edgekit.fleet.service import FleetService
from tests.fleet.acting import ADMIN, enroll, push
from tests.fleet.bundles import make_bundle

Run = Callable[..., Result]
Told = Callable[..., dict[str, Any]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    fleet = FleetService(tmp_path / "data")
    push(fleet, make_bundle(tmp_path / "net", as_directory=True))
    enroll(fleet, "pi")
    fleet.people.make(ADMIN, PersonOrder(name="bob", role="viewer"))
    fleet.close()
    return tmp_path / "data"


def test_a_fleet_is_backed_up_and_restored(data: Path, tmp_path: Path, invoke_json: Told) -> None:
    made = invoke_json("fleet", "backup", tmp_path / "b", "--data", data)["backup"]
    assert made["rows"]["devices"] == 1 and made["blobs"] > 0 and made["database"] == "sqlite"
    assert made["size_bytes"] == (tmp_path / "b").stat().st_size
    restored = invoke_json("fleet", "restore", tmp_path / "b", "--data", tmp_path / "new")["restored"]
    assert restored["rows"] == made["rows"]
    again = FleetService(tmp_path / "new")
    assert [one.name for one in again.people.all()] == ["bob"]
    assert again.bundles.list().items[0].name == "net"
    again.close()


def test_people_are_told_what_is_in_it_and_what_is_next(data: Path, tmp_path: Path, invoke: Run) -> None:
    made = invoke("fleet", "backup", tmp_path / "b", "--data", data)
    assert "1 devices" in made.stdout and "keep it safe" in made.stderr
    assert "] rows" in made.stderr  # progress
    restored = invoke("fleet", "restore", tmp_path / "b", "--data", tmp_path / "new")
    assert "schema" in restored.stdout and "fleet serve" in restored.stderr


def test_what_is_there_is_kept_without_force(data: Path, tmp_path: Path, invoke: Run) -> None:
    invoke("fleet", "backup", tmp_path / "b", "--data", data)
    assert "exists" in invoke("fleet", "backup", tmp_path / "b", "--data", data, code=10).stderr
    invoke("fleet", "backup", tmp_path / "b", "--data", data, "--force")
    assert "--force" in invoke("fleet", "restore", tmp_path / "b", "--data", data, code=17).stderr
    invoke("fleet", "restore", tmp_path / "b", "--data", data, "--force")


def test_wrong_places_are_told(tmp_path: Path, invoke: Run) -> None:
    assert "no folder" in invoke("fleet", "backup", tmp_path / "b", "--data", tmp_path / "nowhere", code=17).stderr
    (tmp_path / "empty").mkdir()
    assert "no database" in invoke("fleet", "backup", tmp_path / "b", "--data", tmp_path / "empty", code=17).stderr
    assert "cannot read" in invoke("fleet", "restore", tmp_path / "b", "--data", tmp_path / "new", code=4).stderr
    assert not (tmp_path / "b").exists()

"""Bundles sent by the client over a real connection."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from edgekit.bundle.layout import INDEX
from edgekit.errors import ConflictError
from edgekit.fleet.client import FleetClient, pushing
from edgekit.fleet.service import FleetService
from tests.fleet.bundles import make_bundle


def largest(folder: Path) -> str:
    """The digest of the file of a bundle that is sent for the longest."""
    files = json.loads((folder / INDEX).read_text())["files"]
    found: str = max(files.values(), key=lambda entry: int(entry["size_bytes"]))["sha256"]
    return found


def test_who_sends_a_file_that_somebody_else_sends_waits_for_it(
    served: FleetService, url: str, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "PAUSE_S", 0.05)
    folder = make_bundle(tmp_path / "net", as_directory=True)
    part = tmp_path / "data" / "blobs" / "part" / largest(folder)
    refused = threading.Event()
    monkeypatch.setattr(pushing.time, "sleep", lambda seconds: (refused.set(), threading.Event().wait(seconds)))
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def leave() -> None:
            refused.wait(20)
            fcntl.flock(other, fcntl.LOCK_UN)

        leaving = threading.Thread(target=leave)
        leaving.start()
        with FleetClient(url, token) as people:
            shown = people.push(folder)
        leaving.join()
    assert refused.is_set()
    assert served.bundles.get(shown.digest).digest == shown.digest


def test_who_waits_for_somebody_who_stands_still_is_told_in_the_end(
    served: FleetService, url: str, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "PAUSE_S", 0.01)
    monkeypatch.setattr(pushing, "PATIENCE_S", 0.1)
    folder = make_bundle(tmp_path / "net", as_directory=True)
    with (tmp_path / "data" / "blobs" / "part" / largest(folder)).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with FleetClient(url, token) as people, pytest.raises(ConflictError, match="somebody else sends"):
            people.push(folder)
    assert served.bundles.list().items == ()


def test_a_push_tells_how_far_it_is(url: str, token: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with FleetClient(url, token) as people:
        people.push(make_bundle(tmp_path / "net.edgekit"), lambda done, total: told.append((done, total)))
        again: list[tuple[int, int]] = []
        people.push(tmp_path / "net.edgekit", lambda done, total: again.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[0][0] == 0 and told[-1][0] == told[-1][1] > 0
    assert again == [(told[-1][1], told[-1][1])], "nothing travels twice"

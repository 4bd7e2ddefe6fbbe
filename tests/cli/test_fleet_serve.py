"""`edgekit fleet serve`: what is asked for reaches the service, and it ends in order."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import insert

from edgekit.cli.fleet_serve import url_of
from edgekit.errors import ConflictError
from edgekit.fleet.server.run import Listening
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.retention import DAY_S
from edgekit.fleet.store.tables import Event

WITHIN_S = 30.0


def lines(data: Path, action: str) -> int:
    found = sqlite3.connect(data / "fleet.db")
    count = found.execute("SELECT count(*) FROM events WHERE action = ?", (action,)).fetchone()[0]
    found.close()
    return int(count)


def test_it_removes_what_is_older_than_asked_alone_in_its_folder_and_ends_in_order_at_sigterm(tmp_path: Path) -> None:
    service = FleetService(tmp_path)
    with service.database.write() as session:
        for action, days in (("old", 3), ("young", 1)):
            line = {"at": time.time() - days * DAY_S, "actor": "a", "action": action, "subject": "b", "detail": {}}
            session.execute(insert(Event).values(line))
    service.close()
    command = [sys.executable, "-m", "edgekit", "fleet", "serve", "--port", "0", "--json", "--data", str(tmp_path)]
    process = subprocess.Popen([*command, "--keep-events", "2"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = []
        while not said or said[-1] != "}\n":
            said.append(process.stdout.readline())
            assert said[-1]
        assert json.loads("".join(said))["url"].startswith("http://127.0.0.1:")
        ends_at = time.monotonic() + WITHIN_S
        while lines(tmp_path, "old"):
            assert time.monotonic() < ends_at
            time.sleep(0.1)
        assert lines(tmp_path, "young") == 1
        second = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S)
        assert second.returncode == ConflictError.exit_code
        assert "another service serves" in second.stderr and "--data" in second.stderr
    finally:
        process.terminate()
        code = process.wait(WITHIN_S)
        process.stdout.close()
    assert code == 0
    found = sqlite3.connect(tmp_path / "fleet.db")
    assert found.execute("SELECT count(*) FROM leases").fetchone()[0] == 0  # free for the next at once
    found.close()


@pytest.mark.parametrize(
    ("host", "names", "shown"),
    [
        ("127.0.0.1", (), "127.0.0.1"),
        ("::1", (), "[::1]"),
        ("0.0.0.0", ("fleet.example", "other"), "fleet.example"),
        ("::", (), socket.gethostname()),
    ],
)
def test_what_is_told_next_names_an_address_that_can_be_reached(host: str, names: tuple[str, ...], shown: str) -> None:
    assert url_of(Listening(host, tls=True, names=names), 8443) == f"https://{shown}:8443"

"""People and devices come in and go by the command line, over a service with TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

pytest.importorskip("sqlalchemy")

from edgekit.fleet.agent.contact import DeviceClient
from edgekit.fleet.agent.home import Home
from edgekit.fleet.protocol.agents import Sync
from tests.fleet.server.tls import Place, serving

Run = Callable[..., Result]
Told = Callable[..., dict[str, Any]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with serving(tmp_path / "data") as found:
        token = found.service.people.found()
        assert token is not None
        monkeypatch.setenv("EDGEKIT_FLEET", found.url)
        monkeypatch.setenv("EDGEKIT_FLEET_TOKEN", token)
        yield found


def test_a_device_enrols_by_its_invitation_and_again_by_one_of_its_own(
    place: Place, tmp_path: Path, invoke: Run, invoke_json: Told
) -> None:
    home = tmp_path / "home"
    token = invoke_json("fleet", "invite", "--label", "board=rpi4", "--ca", place.ca)["invitation"]["token"]
    first = invoke_json("agent", "enroll", "--token", token, "--name", "pi-1", "--home", home)
    assert "--again" in invoke("agent", "enroll", "--token", token, "--name", "pi-1", "--home", home, code=17).stderr
    assert "used up" in invoke("agent", "enroll", "--token", token, "--home", home, "--again", code=16).stderr
    told = invoke("fleet", "invite", "--device", "pi-1", "--ca", place.ca)
    assert "--again" in told.stderr
    token = next(word for word in told.stdout.split() if word.startswith("eki_"))
    again = invoke_json("agent", "enroll", "--token", token, "--home", home, "--again")
    assert (again["device"], again["name"]) == (first["device"], "pi-1")
    client = DeviceClient(Home(home))
    client.sync(Sync())
    client.close()
    assert place.service.devices.get("pi-1").labels == {"board": "rpi4"}


def test_a_token_of_a_person_has_an_end(place: Place, invoke: Run, invoke_json: Told) -> None:
    made = invoke_json("fleet", "people", "--ca", place.ca, "add", "bob", "viewer", "--days", "2")["person"]
    assert made["ends_at"] - made["created_at"] == 2 * 86_400
    shown = invoke("fleet", "people", "--ca", place.ca).stdout
    assert "until" in shown and "UTC" in shown


def test_what_cannot_be_is_told_without_a_traceback(place: Place, tmp_path: Path, invoke: Run) -> None:
    assert "name:" in invoke("fleet", "people", "--ca", place.ca, "add", "Bad Name", "viewer", code=2).stderr
    assert "device:" in invoke("fleet", "invite", "--device", "Bad Name", "--ca", place.ca, code=2).stderr
    assert "no device pi-9" in invoke("fleet", "invite", "--device", "pi-9", "--ca", place.ca, code=17).stderr
    assert (
        "cannot be read"
        in invoke(
            "agent", "enroll", "--token", "eki_x", "--home", tmp_path / "home", "--ca", tmp_path / "none", code=2
        ).stderr
    )

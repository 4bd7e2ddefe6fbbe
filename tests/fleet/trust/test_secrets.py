"""After all that a fleet does, no secret lies where it does not belong: in logs, the database, answers, files."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from edgekit.errors import EdgekitError
from edgekit.fleet.agent.contact import DeviceClient
from edgekit.fleet.agent.enrolment import enroll, renew
from edgekit.fleet.agent.home import Home
from edgekit.fleet.agent.identity import load_identity
from edgekit.fleet.client import FleetClient
from edgekit.fleet.protocol.agents import Sync
from edgekit.fleet.protocol.people import InvitationOrder, PersonOrder
from edgekit.fleet.trust.tokens import secret_of
from tests.fleet.acting import facts
from tests.fleet.bundles import make_bundle
from tests.fleet.server.tls import Place, serving


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], str]:
    """(folder, secrets by what they are, all that was logged and answered), after a fleet was used and misused."""
    folder = tmp_path_factory.mktemp("scenario")
    handler = _Kept()
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with serving(folder / "data") as place:
            secrets = _use(place, folder, handler.lines)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    for path in [
        *(folder / "data" / "trust").rglob("*.pem"),
        folder / "data/trust/authority.key",
        folder / "home/device.pem",
    ]:
        for number, key in enumerate(_private_keys(path)):
            secrets[f"{path.relative_to(folder)} {number}"] = key
    return folder, secrets, "\n".join(handler.lines)


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name} {record.getMessage()} {record.exc_text or ''} {record.exc_info or ''}")


def _private_keys(path: Path) -> list[str]:
    """A line of each, which is enough to know it by."""
    parts = path.read_text().split("PRIVATE KEY-----")
    return [part.split()[0] for part in parts[1::2]]


def _use(place: Place, folder: Path, said: list[str]) -> dict[str, str]:
    admin = place.service.people.found()
    assert admin is not None
    secrets = {"admin": admin}
    with FleetClient(place.url, admin, place.ca) as people:
        secrets["bob"] = people.add_person(PersonOrder(name="bob", role="viewer", valid_s=3600)).token
        people.push(make_bundle(folder / "net.edgekit"))
        invited = people.invite(InvitationOrder(uses=2)).token
        secrets["invitation"] = secret_of(invited)
        home = Home(folder / "home")
        enroll(home, place.url, invited, "pi-1", "device")
        secrets["device"] = load_identity(home).token
        client = DeviceClient(home)
        digest = people.bundles().items[0].digest
        about = facts()
        client.sync(Sync(facts=about, boot=about.boot))
        client.index(digest)
        renew(home, client, "pi-1")
        client.close()
        for ask in (people.events, people.devices, people.people, people.overview):
            said.append(f"{ask()}")
    with contextlib.suppress(EdgekitError), FleetClient(place.url, secrets["bob"], place.ca) as bob:
        bob.remove_person("admin")
    _misuse(place, secrets, said)
    return secrets


def _misuse(place: Place, secrets: dict[str, str], said: list[str]) -> None:
    """Secrets in every place where they do not belong; what is answered must not repeat them."""
    context = ssl.create_default_context(cafile=str(place.ca))
    http = httpx.Client(base_url=place.url, verify=context, trust_env=False, timeout=30)
    asks: list[Callable[[str], httpx.Response]] = [
        lambda secret: http.post("/v1/enroll", json={"token": secret, "name": "Bad Name", "request": 7}),
        lambda secret: http.post("/v1/enroll", json={"token": secret * 20}),
        lambda secret: http.post("/v1/enroll", content=f'{{"token": "{secret}"'),
        lambda secret: http.post("/v1/agent/sync", headers={"Authorization": f"Bearer {secret}"}, content="{"),
        lambda secret: http.get("/v1/people", headers={"Authorization": f"Basic {secret}"}),
        lambda secret: http.get("/v1/people", headers={"Authorization": f"Bearer {secret}x"}),
        lambda secret: http.get("/v1/devices", headers={"Authorization": f"Bearer {secret}", "If-Match": secret}),
        lambda secret: http.post("/sign-in", data={"token": secret}),
    ]
    for secret in list(secrets.values()):
        for ask in asks:
            answer = ask(secret)
            said.append(f"{answer.status_code} {answer.headers} {answer.text}")
    http.close()


def test_the_scenario_has_secrets_and_something_to_search(scenario: tuple[Path, dict[str, str], str]) -> None:
    folder, secrets, said = scenario
    assert {"admin", "bob", "invitation", "device"} < set(secrets)
    assert len(secrets) >= 4 + 7  # four signing keys, the authority's, the service's, the device's
    assert all(len(secret) >= 40 for secret in secrets.values())
    assert "device.enroll" in said and len(said) > 5000
    assert b"pi-1" in b"".join(path.read_bytes() for path in (folder / "data").glob("fleet.db*"))


def test_no_secret_is_logged_or_answered(scenario: tuple[Path, dict[str, str], str]) -> None:
    _, secrets, said = scenario
    assert [what for what, secret in secrets.items() if secret in said] == []


def test_no_secret_is_in_the_database(scenario: tuple[Path, dict[str, str], str]) -> None:
    folder, secrets, _ = scenario
    held = b"".join(path.read_bytes() for path in sorted((folder / "data").glob("fleet.db*")))
    assert [what for what, secret in secrets.items() if secret.encode() in held] == []


def test_a_secret_lies_in_one_file_that_is_its_owners_alone(scenario: tuple[Path, dict[str, str], str]) -> None:
    folder, secrets, _ = scenario
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    for what, secret in secrets.items():
        held = [path for path in files if secret.encode() in path.read_bytes()]
        assert len(held) <= 1, (what, held)
        for path in held:
            assert path.stat().st_mode & 0o077 == 0, (what, path)


def test_the_folder_of_a_service_is_its_users_alone(scenario: tuple[Path, dict[str, str], str]) -> None:
    folder, _, _ = scenario
    for path in (folder / "data", folder / "data" / "trust", folder / "data" / "trust" / "keys"):
        assert path.stat().st_mode & 0o077 == 0, path

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from edgekit.fleet.client import AgentClient
from edgekit.fleet.service import FleetService
from edgekit.fleet.trust.authority import first_certificate
from tests.fleet.acting import enroll, push
from tests.fleet.bundles import make_bundle


def test_metadata_is_served_as_it_was_signed(http: TestClient, served: FleetService, tmp_path: Path) -> None:
    push(served, make_bundle(tmp_path / "net", as_directory=True))
    timestamp = http.get("/v1/tuf/timestamp.json")
    assert timestamp.content == served.trust.file("timestamp.json")
    assert timestamp.headers["cache-control"] == "no-store"
    version = timestamp.json()["signed"]["meta"]["snapshot.json"]["version"]
    snapshot = http.get(f"/v1/tuf/{version}.snapshot.json")
    assert snapshot.content == served.trust.file(f"{version}.snapshot.json")
    assert "immutable" in snapshot.headers["cache-control"]
    assert http.get("/v1/tuf/1.root.json").json()["signed"]["_type"] == "root"


@pytest.mark.parametrize(
    "name", ["root.json", "2.root.json", "../../../etc/passwd", "%2e%2e%2fauthority.key", "1.root.json%00", "keys"]
)
def test_nothing_else_is(http: TestClient, name: str) -> None:
    assert http.get(f"/v1/tuf/{name}").status_code in (404, 422)


def test_people_and_devices_read_it_and_nobody_else(http: TestClient, served: FleetService) -> None:
    del http.headers["Authorization"]
    assert http.get("/v1/tuf/timestamp.json").status_code == 401
    device = enroll(served, "pi-1").token
    assert http.get("/v1/tuf/timestamp.json", headers={"Authorization": f"Bearer {device}"}).status_code == 200


def test_the_authority_is_told_to_everybody_and_its_key_to_nobody(http: TestClient, served: FleetService) -> None:
    del http.headers["Authorization"]
    answer = http.get("/v1/authority")
    assert first_certificate(answer.text)[1] == served.core.authority.fingerprint
    assert "PRIVATE" not in answer.text


def test_a_client_reads_it_over_a_real_server(url: str, served: FleetService) -> None:
    client = AgentClient(url, enroll(served, "pi-1").token)
    assert b"".join(client.metadata("timestamp.json")) == served.trust.file("timestamp.json")
    client.close()


def test_when_it_ends_is_measured(url: str, served: FleetService, token: str) -> None:
    text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=30).text
    found = dict(re.findall(r'edgekit_fleet_signed_until_timestamp_seconds\{role="(\w+)"\} (\S+)', text))
    assert {role: float(at) for role, at in found.items()} == served.trust.ends()

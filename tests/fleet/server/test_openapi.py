"""schemathesis, unmodified, against the description that the service writes of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from edgekit.fleet.protocol.people import GroupOrder
from edgekit.fleet.service import FleetService
from edgekit.fleet.service.people import Actor

# JSON Schema cannot say what a selector, a guard, an index, a certificate request or the right digest is: a request
# that it accepts may well be a 400.
CONFIG = """
[checks]
positive_data_acceptance.enabled = false
"""


@pytest.mark.parametrize("phases", ["examples,fuzzing", pytest.param("coverage", marks=pytest.mark.slow)])
def test_schemathesis_finds_nothing(url: str, served: FleetService, token: str, tmp_path: Path, phases: str) -> None:
    served.groups.put(Actor("admin", "admin"), "pi", GroupOrder(selector="board=rpi4"))
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    words = ["--config-file", str(config), "run", f"{url}/openapi.json", "--no-color", "--seed", "1"]
    words += ["--max-examples", "3", "--phases", phases, "-H", f"Authorization: Bearer {token}"]
    command = [str(Path(sys.executable).with_name("schemathesis")), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    count = sum(len(operations) for operations in paths.values())
    assert f"Tested: {count}" in result.stdout, result.stdout


def test_every_route_tells_how_it_fails_and_asks_for_a_token_but_for_three(url: str) -> None:
    described = httpx.get(f"{url}/openapi.json").json()
    open_ones = set()
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert {"401", "404", "409", "413", "422", "429", "503"} <= operation["responses"].keys(), (method, path)
            if operation.get("security") == []:
                open_ones.add(path)
    assert open_ones == {"/v1/health", "/v1/authority", "/v1/enroll"}
    assert described["security"] == [{"token": []}]


def test_what_is_described_as_closed_is_closed(url: str) -> None:
    described = httpx.get(f"{url}/openapi.json").json()
    tried = 0
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if operation.get("security") == []:
                continue
            address = url + path.replace("{", "").replace("}", "").replace("sha256", "0" * 64).replace("name", "pi")
            answer = httpx.request(method, address, json={} if method in ("post", "put", "patch") else None)
            assert answer.status_code in (401, 422), (method, path, answer.text)
            if answer.status_code == 422:  # the form is looked at first: nothing is told but what is in the description
                assert json.loads(answer.content)["kind"] == "UsageError"
            tried += 1
    assert tried > 25


@pytest.mark.parametrize("path", ["/v1/devices/x", "/v1/bundles", "/v1/groups/pi"])
def test_a_method_that_a_path_lacks_is_refused_with_those_that_it_has(url: str, path: str) -> None:
    answer = httpx.request("TRACE", url + path)
    described = httpx.get(f"{url}/openapi.json").json()["paths"]
    template = path.replace("/x", "/{key}").replace("/pi", "/{name}")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {method.upper() for method in described[template]}
